"""Jensen-Shannon divergence by hand, at its ends and bounds; what all divergences share is in test_divergence.py."""

import math

import pytest
import torch
from torch import Tensor

from bielik_nemo.losses import forward_kl, jensen_shannon, reverse_kl

ONE = torch.ones(1, 1)


def make(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher logits `[5, 3, 24]`, the student's asking for a gradient, and weights `[5, 3]`."""
    student, teacher = torch.randn(2, 5, 3, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(
        dtype
    )
    return student.requires_grad_(), teacher, torch.arange(15).view(5, 3) / 7


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_by_hand(temperature: float):
    """Two words, beta 1/4; the logits are T log p and T log q, so that the softened distributions are p and q.

    Token 1: p = (1, 3) / 4, q = (3, 1) / 4: r = p / 4 + 3 q / 4 = (10, 6) / 16 = (5, 3) / 8.
    KL(p || r) = 1/4 ln 2/5 + 3/4 ln 2, KL(q || r) = 3/4 ln 6/5 + 1/4 ln 2/3.
    Token 2: p = (1/2, 1/2) = q: 0. Weights 2 and 1.
    Sum 2 T^2 (1/4 (1/4 ln 2/5 + 3/4 ln 2) + 3/4 (3/4 ln 6/5 + 1/4 ln 2/3)) = 0.198456 T^2; count 3.
    Gradient of token 1: T m (1 - beta) q (log(q/r) - KL(q||r)) = 2 T 3/4 * 3/4 * 1/4 (ln 6/5 - ln 2/3) (1, -1): for two
    words q_1 (a_1 - q_1 a_1 - q_2 a_2) = q_1 q_2 (a_1 - a_2). That is 9/32 T ln 9/5 (1, -1).
    """
    p = torch.tensor([[[1 / 4, 3 / 4]], [[1 / 2, 1 / 2]]], dtype=torch.float64)
    q = torch.tensor([[[3 / 4, 1 / 4]], [[1 / 2, 1 / 2]]], dtype=torch.float64)
    student = (temperature * q.log()).requires_grad_()
    mask = torch.tensor([[2.0], [1.0]])
    total, count = jensen_shannon(student, temperature * p.log(), mask, beta=0.25, temperature=temperature)
    total.backward()
    kl_p = (math.log(2 / 5) + 3 * math.log(2)) / 4
    kl_q = (3 * math.log(6 / 5) + math.log(2 / 3)) / 4
    assert total.item() == pytest.approx(2 * temperature**2 * (kl_p + 3 * kl_q) / 4, rel=1e-14)
    assert total.item() == pytest.approx({1.0: 0.198456, 2.0: 0.793825}[temperature], abs=1e-6)
    assert count.item() == 3
    slope = 9 / 32 * temperature * math.log(9 / 5)
    torch.testing.assert_close(student.grad, torch.tensor([[[slope, -slope]], [[0, 0]]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("beta", [1e-3, 1e-6])
def test_near_its_ends_it_is_a_small_part_of_a_kl(dtype: torch.dtype, beta: float):
    """JSD_beta = beta KL(p || q) + O(beta^2) and JSD_(1 - beta) = beta KL(q || p) + O(beta^2), with their gradients.

    The second-order term is -beta^2/2 chi^2, here some ten times beta of the whole. fp32 keeps its precision at 1e-6,
    where log(beta p + (1 - beta) q) would have lost all of it.
    """
    student, teacher, mask = make(dtype)
    rtol = 50 * beta + (0 if dtype == torch.float64 else 2e-5)
    for weight, kl in ((beta, forward_kl), (1 - beta, reverse_kl)):
        want, _ = kl(student, teacher, mask)
        (want_grad,) = torch.autograd.grad(want, student)
        total, _ = jensen_shannon(student, teacher, mask, beta=weight)
        (grad,) = torch.autograd.grad(total, student)
        torch.testing.assert_close(total / min(weight, 1 - weight), want, rtol=rtol, atol=0)
        torch.testing.assert_close(grad / min(weight, 1 - weight), want_grad, rtol=rtol, atol=rtol)


def test_is_symmetric_with_its_weight():
    """Exchanged roles and beta -> 1 - beta are the same divergence; at 1/2 teacher and student count alike."""
    student, teacher, mask = make()
    for beta in (0.1, 0.5, 0.8):
        there, _ = jensen_shannon(student, teacher, mask, beta=beta)
        back, _ = jensen_shannon(teacher, student, mask, beta=1 - beta)
        torch.testing.assert_close(there, back)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_is_bounded_by_the_entropy_of_its_weight(beta: float):
    """Of p and q without a common word, log(p / r) = -log beta and log(q / r) = -log(1 - beta) where each is not 0.

    So the value is the entropy -beta ln beta - (1 - beta) ln(1 - beta), for beta = 1/2 ln 2; there is no slope left.
    Logits that are 400 apart are taken as 80, which fp32 holds to 4e-6.
    """
    student = torch.tensor([[[200.0, 0.0]]], requires_grad=True)
    total, _ = jensen_shannon(student, torch.tensor([[[0.0, 200.0]]]), ONE, beta=beta)
    total.backward()
    assert total.item() == pytest.approx(-beta * math.log(beta) - (1 - beta) * math.log(1 - beta), rel=1e-5)
    assert not student.grad.any()


@pytest.mark.parametrize("beta", [0, 1, -0.5, 1.5, math.nan])
def test_impossible_weight(beta: float):
    """Its ends are identically zero: what is meant there is one of the KL losses."""
    with pytest.raises(ValueError, match=f"beta={beta}: must lie between 0 and 1, both excluded"):
        jensen_shannon(*make(), beta=beta)
