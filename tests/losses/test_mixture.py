"""A mixture is the sum of its parts with literal weights, value and gradient; what it refuses."""

import re

import pytest
import torch
from torch import Tensor

from bielik_nemo.losses import (
    PARTS,
    Sampled,
    TopK,
    cross_entropy,
    favourite,
    forward_kl,
    jensen_shannon,
    mixture,
    reverse_kl,
    sampled_kl,
    sparse_kl,
)

S, B, V, REAL = 4, 3, 24, 19


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Student and teacher logits `[s, b, v]`, labels and mask `[s, b]`."""
    random = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, S, B, V, dtype=torch.float64, generator=random)
    labels = torch.randint(REAL, (S, B), generator=random)
    return student.requires_grad_(), teacher, labels, (torch.rand(S, B, generator=random) > 0.4).float()


def gradient(total: Tensor, student: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(total, student)
    return found


def test_literal_weights(inputs):
    """2 KL + 0.5 RKL + 3 JSD(0.1) + 0.25 CE at T = 2, with cross-entropy at 1; parts are told without their weights."""
    student, teacher, labels, mask = inputs
    weights = dict(zip(PARTS, (2.0, 0.5, 3.0, 0.25), strict=True))
    total, count, sums = mixture(student, teacher, labels, mask, weights, temperature=2.0, beta=0.1, vocab_size=REAL)
    want = {
        "forward_kl": forward_kl(student, teacher, mask, temperature=2.0, vocab_size=REAL),
        "reverse_kl": reverse_kl(student, teacher, mask, temperature=2.0, vocab_size=REAL),
        "jensen_shannon": jensen_shannon(student, teacher, mask, beta=0.1, temperature=2.0, vocab_size=REAL),
        "cross_entropy": cross_entropy(student, labels, mask, vocab_size=REAL),
    }
    assert list(sums) == list(PARTS)
    assert count == mask.sum()
    for name, (part, _) in want.items():
        assert sums[name] == part
        assert not sums[name].requires_grad
    torch.testing.assert_close(total, sum(weights[name] * part for name, (part, _) in want.items()))
    parts = sum(weights[name] * gradient(part, student) for name, (part, _) in want.items())
    torch.testing.assert_close(gradient(total, student), parts)


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_a_weight_means_the_same_whatever_the_size_of_the_parts(inputs, size: float):
    """A balancer would give both parts the same size; here a teacher that is nearly the student adds nearly nothing."""
    student, _, labels, mask = inputs
    teacher = student.detach() * (1 + size)
    total, _, sums = mixture(student, teacher, labels, mask, {"forward_kl": 1.0, "cross_entropy": 0.5})
    torch.testing.assert_close(total.detach(), sums["forward_kl"] + 0.5 * sums["cross_entropy"])
    assert (sums["forward_kl"] < 0.01 * sums["cross_entropy"]) == (size < 1)


@pytest.mark.parametrize("name", PARTS)
def test_one_part_of_weight_one_is_that_loss_exactly(inputs, name: str):
    student, teacher, labels, mask = inputs
    total, _, sums = mixture(student, teacher, labels, mask, dict.fromkeys(PARTS, 0.0) | {name: 1.0})
    alone = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jensen_shannon": jensen_shannon}
    part, _ = alone[name](student, teacher, mask) if name in alone else cross_entropy(student, labels, mask)
    assert list(sums) == [name]
    assert torch.equal(total, part)
    assert torch.equal(gradient(total, student), gradient(part, student))


def test_what_was_kept_of_a_teacher(inputs):
    """Forward KL is then sampled or sparse KL, beside cross-entropy."""
    student, teacher, labels, mask = inputs
    weights = {"forward_kl": 2.0, "cross_entropy": 0.5}
    ce, _ = cross_entropy(student, labels, mask, vocab_size=REAL)
    ids = torch.randint(REAL, (S, B, 5), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    surprisal = torch.rand(S, B)
    total, _, sums = mixture(student, Sampled(ids, surprisal), labels, mask, weights, vocab_size=REAL)
    kl, _ = sampled_kl(student, ids, surprisal, mask, vocab_size=REAL)
    assert sums["forward_kl"] == kl
    torch.testing.assert_close(total, 2 * kl + 0.5 * ce)
    log_probs, top = (teacher[..., :REAL] / 2).log_softmax(-1).topk(5)
    total, _, sums = mixture(student, TopK(top, log_probs), labels, mask, weights, temperature=2.0, vocab_size=REAL)
    kl, _ = sparse_kl(student, top, log_probs, mask, temperature=2.0, vocab_size=REAL)
    assert sums["forward_kl"] == kl
    torch.testing.assert_close(total, 2 * kl + 0.5 * ce)


@pytest.mark.parametrize(
    "weights", [{}, {"forward_kl": 0.0}, {"forward_kl": 2.0, "cross_entropy": -1.0}, {"forward_kl": 1.0, "kl": 1.0}]
)
def test_weights_that_make_no_loss(inputs, weights: dict):
    allowed = "allowed are positive ones of forward_kl, reverse_kl, jensen_shannon, cross_entropy, one at least"
    with pytest.raises(ValueError, match=re.escape(f"weights are {weights}: {allowed}")):
        mixture(*inputs, weights)


def test_what_samples_cannot_give(inputs):
    student, _, labels, mask = inputs
    sampled = Sampled(torch.zeros(S, B, 5, dtype=torch.int64), torch.zeros(S, B))
    with pytest.raises(ValueError, match="reverse_kl: needs the teacher's logits, has its Sampled"):
        mixture(student, sampled, labels, mask, {"forward_kl": 1.0, "reverse_kl": 1.0})
    with pytest.raises(ValueError, match=r"temperature=2\.0: words sampled from a teacher are of temperature 1"):
        mixture(student, sampled, labels, mask, {"forward_kl": 1.0}, temperature=2.0)


def test_the_teacher_s_favourite_word():
    """Of logits the largest; of samples 3 1 3 1 0 the smaller of two drawn twice; of the top-k the most likely."""
    logits = torch.tensor([[[0.0, 2, 2, 9]]])
    assert favourite(logits, vocab_size=3).tolist() == [[1]]
    assert favourite(Sampled(torch.tensor([[[3, 1, 3, 1, 0]]], dtype=torch.int32), torch.zeros(1, 1))).tolist() == [[1]]
    assert favourite(TopK(torch.tensor([[[7, 5, 6]]]), torch.tensor([[[-2.0, -0.1, -3]]]))).tolist() == [[5]]
