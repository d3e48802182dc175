"""Cosine distance of two streams, by hand and against its definition in float64."""

import math

import pytest
import torch

from bielik_nemo.losses import hidden_state


def test_by_hand():
    """Angles of 0, 90, 180 and 60 degrees: 1 - cos = 0, 1, 2 and 1/2; weights 1, 1, 1/2 and 1: 2.5 of 3.5."""
    student = torch.tensor([[[2.0, 0], [3, 0]], [[1, 0], [5, 0]]])
    teacher = torch.tensor([[[1.0, 0], [0, 7]], [[-4, 0], [1, math.sqrt(3)]]])
    total, count = hidden_state(student, teacher, torch.tensor([[1.0, 1], [0.5, 1]]))
    assert total.item() == pytest.approx(2.5)
    assert count.item() == 3.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [8, 5])
def test_equals_the_definition(width: int, dtype: torch.dtype):
    """Value, and gradient of stream and projection; in bf16 to its rounding."""
    random = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(4, 3, width, generator=random), torch.randn(4, 3, 8, generator=random)
    projection = None if width == 8 else torch.randn(8, width, generator=random).to(dtype).requires_grad_()
    mask = (torch.rand(4, 3, generator=random) > 0.4).float()
    student, teacher = student.to(dtype).requires_grad_(), teacher.to(dtype)
    total, _ = hidden_state(student, teacher, mask, projection)
    inputs = [student] if projection is None else [student, projection]
    found = torch.autograd.grad(total, inputs)
    exact = [each.detach().double().requires_grad_() for each in inputs]
    x, t = exact[0] if projection is None else exact[0] @ exact[1].T, teacher.double()
    wanted = (mask * (1 - (x * t).sum(-1) / (x.norm(dim=-1) * t.norm(dim=-1)))).sum()
    precision = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert total.item() == pytest.approx(wanted.item(), rel=precision)
    for one, two in zip(found, torch.autograd.grad(wanted, exact), strict=True):
        assert one.dtype == dtype
        assert (one.double() - two).abs().max() < precision * two.abs().max()


def test_a_stream_of_zeros_is_not_nan():
    student = torch.zeros(1, 1, 4, requires_grad=True)
    total, _ = hidden_state(student, torch.ones(1, 1, 4), torch.ones(1, 1))
    total.backward()
    assert total.item() == 1
    assert student.grad.isfinite().all()


def test_gradient_flows_to_the_student_alone():
    teacher, mask = torch.ones(1, 2, 4, requires_grad=True), torch.ones(1, 2)
    hidden_state(torch.randn(1, 2, 4).requires_grad_(), teacher, mask)[0].backward()
    assert teacher.grad is None


def test_shapes_that_do_not_go_together():
    x, mask = torch.zeros(2, 3, 4), torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"mask is \[3, 2\], logits want \[2, 3\]"):
        hidden_state(x, x, mask.T)
    with pytest.raises(ValueError, match=r"student \[2, 3, 4\] \(projected\) and teacher \[2, 3, 5\] must agree"):
        hidden_state(x, torch.zeros(2, 3, 5), mask)
    with pytest.raises(ValueError, match=r"student \[2, 3, 6\] \(projected\)"):
        hidden_state(x, torch.zeros(2, 3, 5), mask, torch.zeros(6, 4))
