"""Sampled KL against its definition in float64, and against forward KL in the mean; the draws against the softmax."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bielik_nemo.losses import draw, forward_kl, sampled_kl

S, B, V, REAL, N = 5, 3, 24, 19, 7  # positions, batch, columns, how many of them are vocabulary, ids per token


def make(seed: int = 0, dtype: torch.dtype = torch.float64, vocab_size: int = REAL) -> list[Tensor]:
    """Student logits `[s, b, v]` asking for a gradient, any ids `[s, b, n]`, a surprisal and a 0/1 mask `[s, b]`."""
    random = torch.Generator().manual_seed(seed)
    student = (3 * torch.randn(S, B, V, dtype=torch.float64, generator=random)).to(dtype)
    ids = torch.randint(vocab_size, (S, B, N), generator=random)
    surprisal = torch.rand(S, B, generator=random)
    mask = (torch.rand(S, B, generator=random) > 0.4).float()
    return [student.requires_grad_(), ids, surprisal, mask]


def reference(
    student: Tensor, ids: Tensor, surprisal: Tensor, mask: Tensor, vocab_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The definition in float64 and its gradient by autograd, padding cut off first."""
    x = student.detach().double().requires_grad_()
    log_q = x[..., :vocab_size].log_softmax(-1)
    total = (mask.double() * (-log_q.gather(-1, ids).mean(-1) - surprisal.double())).sum()
    return total.detach(), torch.autograd.grad(total, x)[0]


def check(inputs: list[Tensor], rtol: float = 1e-12, atol: float = 1e-12, **options) -> None:
    total, count = sampled_kl(*inputs, **options)
    (grad,) = torch.autograd.grad(total, inputs[0])
    want, want_grad = reference(*inputs, **options)
    assert grad.dtype == inputs[0].dtype
    assert count.item() == pytest.approx(inputs[-1].double().sum().item())
    torch.testing.assert_close(total.detach().double(), want, rtol=rtol, atol=atol)
    torch.testing.assert_close(grad.double(), want_grad, rtol=rtol, atol=atol)


def test_by_hand():
    """Two tokens, three words, four draws; p of token 1 is (1/2, 1/4, 1/4), of token 2 (1/3, 1/3, 1/3).

    Token 1: ids 0, 0, 1, 2, q = (1/4, 1/4, 1/2). Surprisal (2 ln 2 + 2 ln 4) / 4 = 1.5 ln 2, of the student
    (3 ln 4 + ln 2) / 4 = 1.75 ln 2: 1/4 ln 2, here the very KL, for the ids have the teacher's frequencies.
    Token 2: ids 1, 1, 1, 1, q = (1/2, 1/4, 1/4). Student ln 4, teacher ln 3: ln 4/3.
    Weights 1 and 1/2: 1/4 ln 2 + 1/2 ln 4/3 = 0.317128; count 1.5.
    Gradient m (q - counts / N): (-1/4, 0, 1/4) and 1/2 (1/2, -3/4, 1/4).
    """
    q = torch.tensor([[[1 / 4, 1 / 4, 1 / 2]], [[1 / 2, 1 / 4, 1 / 4]]], dtype=torch.float64)
    student = q.log().requires_grad_()
    ids = torch.tensor([[[0, 0, 1, 2]], [[1, 1, 1, 1]]], dtype=torch.uint16)
    surprisal = torch.tensor([[1.5 * math.log(2)], [math.log(3)]], dtype=torch.float64)
    total, count = sampled_kl(student, ids, surprisal, torch.tensor([[1.0], [0.5]]))
    total.backward()
    assert total.item() == pytest.approx(math.log(2) / 4 + math.log(4 / 3) / 2, rel=1e-14)
    assert total.item() == pytest.approx(0.317128, abs=1e-6)
    assert count.item() == 1.5
    want = torch.tensor([[[-1 / 4, 0, 1 / 4]], [[1 / 4, -3 / 8, 1 / 8]]], dtype=torch.float64)
    torch.testing.assert_close(student.grad, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rows", [1, 2, 7, 15])
def test_equals_the_definition_in_any_chunks(dtype: torch.dtype, rows: int, chunk_rows):
    chunk_rows(rows, V)
    precision = 1e-12 if dtype == torch.float64 else 2e-6
    check(make(dtype=dtype), rtol=precision, atol=precision)


def test_gradient_is_the_slope():
    """Central differences (f(x + h d) - f(x - h d)) / 2h along ten directions d, in float64 with h = 1e-5.

    torch's `gradcheck` walks a graph twice, which this loss refuses.
    """
    student, *rest = make()
    total, _ = sampled_kl(student, *rest)
    (grad,) = torch.autograd.grad(total, student)
    for seed in range(10):
        d = torch.randn(student.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        ends = [sampled_kl(student.detach() + h * d, *rest)[0] for h in (1e-5, -1e-5)]
        assert (grad * d).sum().item() == pytest.approx(((ends[0] - ends[1]) / 2e-5).item(), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("padding", [1e30, -1e30, math.inf, math.nan])
def test_padded_vocabulary_never_counts(padding: float):
    """Whatever stands in the columns past the vocabulary: same loss, same gradient, and zeros on the padding."""
    inputs = make()
    with torch.no_grad():
        inputs[0][..., REAL:] = padding
    check(inputs, vocab_size=REAL)
    (grad,) = torch.autograd.grad(sampled_kl(*inputs, vocab_size=REAL)[0], inputs[0])
    assert not grad[..., REAL:].any()


def test_bfloat16():
    """Logits in bf16 are worked on in fp32: the value is good to fp32, the gradient to one rounding to bf16 (2^-8)."""
    inputs = make(dtype=torch.bfloat16)
    total, count = sampled_kl(*inputs)
    (grad,) = torch.autograd.grad(total, inputs[0])
    want, want_grad = reference(*inputs)
    assert (total.dtype, count.dtype, grad.dtype) == (torch.float32, torch.float32, torch.bfloat16)
    assert total.item() == pytest.approx(want.item(), rel=2e-6)
    torch.testing.assert_close(grad.double(), want_grad, rtol=2**-8, atol=1e-7)


def test_gradient_is_scaled_at_full_precision():
    """The trainer's factor, here 1/3, is applied in fp32 and not rounded to bf16 (0.33398) first."""
    inputs = make(dtype=torch.bfloat16)
    (whole,) = torch.autograd.grad(sampled_kl(*inputs)[0], inputs[0])
    (third,) = torch.autograd.grad(sampled_kl(*inputs)[0] / 3, inputs[0])
    torch.testing.assert_close(third, (whole.float() / 3).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize(
    "mask", [torch.zeros(S, B), torch.ones(S, B), torch.arange(S * B).view(S, B) / 7], ids=["zeros", "ones", "parts"]
)
def test_masks(mask: Tensor):
    check([*make()[:-1], mask])


def test_batch_layout_of_megatron_and_inputs_stay():
    """Megatron's tensors are `[b, s, ...]` in memory and come here transposed; none is changed."""
    inputs = [x.detach().transpose(0, 1).contiguous().transpose(0, 1) for x in make(dtype=torch.float32)]
    assert not any(x.is_contiguous() for x in inputs)
    inputs[0].requires_grad_()
    before = [x.detach().clone() for x in inputs]
    check(inputs, rtol=2e-6, atol=2e-6)
    sampled_kl(*inputs)[0].backward()
    assert all(torch.equal(x.detach(), y) for x, y in zip(inputs, before, strict=True))


def test_a_graph_is_walked_once_and_there_is_none_without_a_student_to_train():
    inputs = make()
    total, _ = sampled_kl(*inputs)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        total.backward()
    assert not sampled_kl(inputs[0].detach(), *inputs[1:])[0].requires_grad


def test_micro_batches_of_unequal_masks_add_up():
    """Sums and gradients of 5, 0 and 2 counted tokens add up to those of the 7 together."""
    inputs = make()
    inputs[-1] = torch.zeros(S, B)
    inputs[-1][:, 0] = 1
    inputs[-1][1:3, 2] = 1
    total, count = sampled_kl(*inputs)
    (grad,) = torch.autograd.grad(total / count, inputs[0])
    sums, counts = [], []
    for i in range(B):
        x, *rest = (each[:, i : i + 1] for each in inputs)
        x = x.detach().requires_grad_()
        part, tokens = sampled_kl(x, *rest)
        torch.testing.assert_close(torch.autograd.grad(part / count, x)[0], grad[:, i : i + 1])
        sums.append(part.item())
        counts.append(tokens.item())
    assert counts == [5, 0, 2]
    assert sum(sums) == pytest.approx(total.item(), rel=1e-12)


def test_never_holds_all_logits_in_float32(chunk_rows, peak_bytes):
    """1024 tokens of 512 words in chunks of 8: beyond the gradient, a handful of chunks of 8 * 512 * 4 = 16 KiB.

    One fp32 copy of all logits would be 2 MiB, 128 chunks; allowed are ten.
    """
    tokens, words, rows = 1024, 512, 8
    student = torch.randn(tokens, 1, words).bfloat16().requires_grad_()
    ids, one = torch.randint(words, (tokens, 1, N)), torch.ones(tokens, 1)
    chunk_rows(rows, words)
    gradient = student.numel() * student.element_size()
    peak = peak_bytes(lambda: (sampled_kl(student, ids, one, one)[0] / tokens).backward())
    assert gradient < peak < gradient + 10 * 4 * rows * words


def test_shapes_that_do_not_go_together():
    student, ids, surprisal, mask = make()
    with pytest.raises(ValueError, match=r"ids are \[3, 5, 7\], logits want \[5, 3\] and at least one id for each"):
        sampled_kl(student, ids.transpose(0, 1), surprisal, mask)
    with pytest.raises(ValueError, match=r"ids are \[5, 3, 0\], logits want"):
        sampled_kl(student, ids[..., :0], surprisal, mask)
    with pytest.raises(ValueError, match=r"surprisal is \[3, 5\], logits want \[5, 3\]"):
        sampled_kl(student, ids, surprisal.T, mask)
    with pytest.raises(ValueError, match=r"mask is \[5, 1\], logits want \[5, 3\]"):
        sampled_kl(student, ids, surprisal, mask[:, :1])
    with pytest.raises(ValueError, match="vocab_size=25: the logits have 24 columns; allowed: 1 to 24"):
        sampled_kl(student, ids, surprisal, mask, vocab_size=25)
    with pytest.raises(ValueError, match=r"uniforms are \[4, 2\], logits want \[5\] and a last axis"):
        draw(student[:, 0], torch.zeros(4, 2, dtype=torch.float64))


# The draws


def test_drawn_by_hand():
    """p = (1/2, 0, 1/4, 1/4): the stretches are [0, 1/2), nothing, [1/2, 3/4), [3/4, 1).

    Surprisal of the ids 0, 0, 2, 3: (2 ln 2 + 2 ln 4) / 4 = 1.5 ln 2.
    """
    logits = torch.tensor([[1 / 2, 0, 1 / 4, 1 / 4], [1 / 2, 0, 1 / 4, 1 / 4]], dtype=torch.float64).log() + 5
    numbers = torch.tensor([[0.0, 0.4999, 0.5, 0.75], [0.7499, 0.9999, 1 - 2**-53, 0.1]], dtype=torch.float64)
    ids, surprisal = draw(logits, numbers)
    assert ids.tolist() == [[0, 0, 2, 3], [2, 3, 3, 0]]
    assert surprisal.tolist() == pytest.approx([1.5 * math.log(2), 1.75 * math.log(2)], rel=1e-6)


def test_frequencies_are_the_softmax():
    """100,000 draws of one token; each count is within five of its standard deviations sqrt(n p (1 - p))."""
    logits = 2 * torch.randn(1, REAL, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    n = 100_000
    ids, _ = draw(logits, torch.from_numpy(np.random.default_rng(0).random((1, n))))
    p = logits[0].softmax(-1)
    assert ((ids[0].bincount(minlength=REAL) - n * p).abs() < 5 * (n * p * (1 - p)).sqrt()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_is_never_drawn_and_chunks_do_not_matter(dtype: torch.dtype, chunk_rows):
    logits = (3 * torch.randn(12, V, generator=torch.Generator().manual_seed(0))).to(dtype)
    logits[:, REAL:] = 1e30
    numbers = torch.rand(12, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    whole, cut = draw(logits, numbers, vocab_size=REAL), draw(logits[:, :REAL], numbers)
    chunk_rows(5, V)
    parts = draw(logits, numbers, vocab_size=REAL)
    assert whole[0].max() < REAL
    for found in (cut, parts):
        assert torch.equal(found[0], whole[0])
        assert torch.equal(found[1], whole[1])
    assert torch.equal(logits, before)


def test_logits_that_are_not_finite_show_in_the_surprisal():
    logits = torch.zeros(3, 4)
    logits[0, 1], logits[1, 1], logits[2, 1] = math.nan, math.inf, -math.inf
    _, surprisal = draw(logits, torch.full((3, 2), 0.5, dtype=torch.float64))
    assert surprisal.isfinite().tolist() == [False, False, True]


# Both together


def test_mean_over_draws_is_forward_kl():
    """4,000 times six draws for each of five tokens: value and gradient are forward KL's within five standard errors.

    A loss on the most likely ids alone, renormalised, is not: its gradient is zero on every id that it left out.
    """
    random = torch.Generator().manual_seed(0)
    student, teacher = 1.5 * torch.randn(2, 5, 1, 8, dtype=torch.float64, generator=random)
    student.requires_grad_()
    mask = torch.tensor([[1.0], [1.0], [0.0], [0.5], [1.0]])
    want, _ = forward_kl(student, teacher, mask)
    (want_grad,) = torch.autograd.grad(want, student)
    values, grads = [], []
    for seed in range(4000):
        numbers = torch.from_numpy(np.random.default_rng([1, seed]).random((5, 6)))
        ids, surprisal = draw(teacher[:, 0], numbers)
        total, _ = sampled_kl(student, ids.unsqueeze(1), surprisal.unsqueeze(1), mask)
        values.append(total.detach())
        grads.append(torch.autograd.grad(total, student)[0])
    for found, expected in ((torch.stack(values), want.detach()), (torch.stack(grads), want_grad)):
        error = found.std(0) / math.sqrt(len(found))
        assert ((found.mean(0) - expected).abs() <= 5 * error + 1e-12).all()
    assert torch.stack(values).std() / math.sqrt(4000) < 0.01 * want


def test_a_perfect_student_has_loss_zero_whatever_was_drawn():
    """Not so with the entropy in place of the drawn ids' own surprisal; the gradient is p - counts / N all the same."""
    logits = 3 * torch.randn(S * B, V, generator=torch.Generator().manual_seed(0))
    ids, surprisal = draw(logits, torch.rand(S * B, N, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    total, _ = sampled_kl(
        logits.view(S, B, V), ids.view(S, B, N), surprisal.view(S, B), torch.ones(S, B), vocab_size=None
    )
    assert total.item() == pytest.approx(0, abs=1e-5)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    other, _ = sampled_kl(logits.view(S, B, V), ids.view(S, B, N), entropy.view(S, B), torch.ones(S, B))
    assert abs(other.item()) > 0.1
