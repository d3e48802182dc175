"""Forward KL by hand; what it shares with the other divergences is in test_divergence.py."""

import math

import pytest
import torch

from bielik_nemo.losses import forward_kl


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_by_hand(temperature: float):
    """Two tokens, three words; the logits are T log p and T log q, so that the softened distributions are p and q.

    Token 1: p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2). KL = 1/2 ln 2 + 1/4 ln 1 + 1/4 ln 1/2 = 1/4 ln 2.
    Token 2: p = (1/3, 1/3, 1/3), q = (1/2, 1/4, 1/4). KL = 1/3 ln 2/3 + 2/3 ln 4/3 = 1/3 ln 32/27.
    Weights 1 and 1/2: sum T^2 (1/4 ln 2 + 1/6 ln 32/27), which is 0.201603 for T = 1 and 0.806413 for T = 2; count 1.5.
    Gradient T m (q - p): T (-1/4, 0, 1/4) and T/2 (1/6, -1/12, -1/12).
    """
    p = torch.tensor([[[1 / 2, 1 / 4, 1 / 4]], [[1 / 3, 1 / 3, 1 / 3]]], dtype=torch.float64)
    q = torch.tensor([[[1 / 4, 1 / 4, 1 / 2]], [[1 / 2, 1 / 4, 1 / 4]]], dtype=torch.float64)
    student = (temperature * q.log()).requires_grad_()
    total, count = forward_kl(student, temperature * p.log(), torch.tensor([[1.0], [0.5]]), temperature=temperature)
    total.backward()
    assert total.item() == pytest.approx(temperature**2 * (math.log(2) / 4 + math.log(32 / 27) / 6), rel=1e-14)
    assert total.item() == pytest.approx({1.0: 0.201603, 2.0: 0.806413}[temperature], abs=1e-6)
    assert count.item() == 1.5
    want = temperature * torch.tensor([[[-1 / 4, 0, 1 / 4]], [[1 / 12, -1 / 24, -1 / 24]]], dtype=torch.float64)
    torch.testing.assert_close(student.grad, want)
