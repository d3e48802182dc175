"""Reverse KL by hand, and how it differs from forward KL; what they share is in test_divergence.py."""

import math

import pytest
import torch

from bielik_nemo.losses import forward_kl, reverse_kl


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_by_hand(temperature: float):
    """Two tokens, three words; the logits are T log p and T log q, so that the softened distributions are p and q.

    Token 1: p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2). KL(q || p) = 1/4 ln 1/2 + 1/4 ln 1 + 1/2 ln 2 = 1/4 ln 2.
    Token 2: p = (1/4, 1/2, 1/4), q = (1/2, 1/4, 1/4). The same two terms, 1/2 ln 2 + 1/4 ln 1/2 = 1/4 ln 2.
    Weights 1 and 1/2: T^2 3/8 ln 2 = 0.259930 T^2; count 1.5.
    Gradient T m q (log(q/p) - KL). Token 1: log(q/p) - KL = ln 2 (-5/4, -1/4, 3/4), times q: ln 2 (-5, -1, 6) / 16.
    Token 2: ln 2 (3/4, -5/4, -1/4), times q and the weight of 1/2: ln 2 (6, -5, -1) / 32.
    """
    p = torch.tensor([[[1 / 2, 1 / 4, 1 / 4]], [[1 / 4, 1 / 2, 1 / 4]]], dtype=torch.float64)
    q = torch.tensor([[[1 / 4, 1 / 4, 1 / 2]], [[1 / 2, 1 / 4, 1 / 4]]], dtype=torch.float64)
    student = (temperature * q.log()).requires_grad_()
    total, count = reverse_kl(student, temperature * p.log(), torch.tensor([[1.0], [0.5]]), temperature=temperature)
    total.backward()
    assert total.item() == pytest.approx(temperature**2 * 3 / 8 * math.log(2), rel=1e-14)
    assert total.item() == pytest.approx({1.0: 0.259930, 2.0: 1.039721}[temperature], abs=1e-6)
    assert count.item() == 1.5
    want = temperature * math.log(2) / 32 * torch.tensor([[[-10, -2, 12]], [[6, -5, -1]]], dtype=torch.float64)
    torch.testing.assert_close(student.grad, want)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_is_forward_kl_with_the_roles_exchanged(temperature: float):
    student, teacher = 3 * torch.randn(2, 5, 3, 24, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(15.0).view(5, 3) / 7
    reverse, _ = reverse_kl(student, teacher, mask, temperature=temperature)
    forward, _ = forward_kl(teacher, student, mask, temperature=temperature)
    torch.testing.assert_close(reverse, forward)


def test_one_of_two_modes_is_better_than_what_lies_between():
    """p = (0.49, 0.02, 0.49); a student on one mode, q = (0.98, 0.01, 0.01), or on all alike, q = (1/3, 1/3, 1/3).

    Reverse KL prefers the mode: 0.98 ln 2 + 0.01 ln 1/2 + 0.01 ln 1/49 = 0.633, the other ln 1/3 - 2/3 ln 0.49
    - 1/3 ln 0.02 = 0.681. Forward KL the spread: 0.49 ln 1/2 + 0.02 ln 2 + 0.49 ln 49 = 1.581, the other
    0.98 ln 1.47 + 0.02 ln 0.06 = 0.321.
    """
    teacher = torch.tensor([[[0.49, 0.02, 0.49]]]).log()
    mode, spread = (torch.tensor([[q]]).log() for q in ([0.98, 0.01, 0.01], [1 / 3, 1 / 3, 1 / 3]))
    one = torch.ones(1, 1)
    values = [loss(q, teacher, one)[0].item() for loss in (reverse_kl, forward_kl) for q in (mode, spread)]
    assert values == pytest.approx([0.633, 0.681, 1.581, 0.321], abs=1e-3)
