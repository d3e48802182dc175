from __future__ import annotations

import math

import pytest
import torch

from bielik_nemo.align.merge import angle, slerp, weighted_mean

DTYPES = [torch.float32, torch.bfloat16]


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_weighted_mean():
    """(1 * [1, 2] + 3 * [5, -2]) / 4 = [16, -4] / 4; weights of which only the proportion counts."""
    tensors = [vector(1, 2), vector(5, -2)]
    for scale in (1.0, 0.1, 1e6):
        torch.testing.assert_close(weighted_mean(tensors, [scale, 3 * scale]), vector(4, -1).double())
    assert torch.equal(weighted_mean(tensors, [0, 2]), tensors[1].double())
    with pytest.raises(ValueError):
        weighted_mean(tensors, [1, 1, 1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mean_of_equal_tensors_is_that_tensor(dtype: torch.dtype):
    """In float32 a third of a number, added three times, is another number for some."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(weighted_mean([x, x, x], [1, 1, 1]).to(dtype), x)
    assert not torch.equal(sum([x.float() * 0.1] * 10), x.float())


def test_one_source_in_memory_at_a_time():
    alive, most = 0, 0

    def sources():
        nonlocal alive, most
        for _ in range(5):
            alive, most = alive + 1, max(most, alive + 1)
            yield torch.ones(3)
            alive -= 1  # asked for the next one

    assert torch.equal(weighted_mean(sources(), [1] * 5), torch.ones(3).double())
    assert most == 1


@pytest.mark.parametrize("degrees", [0.001, 1, 60, 90, 179])
def test_angle(degrees: float):
    """Between [3, 0] and [cos, sin]: also one whose cosine in float32 is 1."""
    radians = math.radians(degrees)
    other = torch.tensor([math.cos(radians), math.sin(radians)], dtype=torch.float64)
    assert angle(vector(3, 0), other) == pytest.approx(radians, rel=1e-6)


def test_angle_of_the_same_the_opposite_and_nothing():
    x = vector(1, 2, 2)
    assert angle(x, 5 * x) == pytest.approx(0, abs=1e-7)
    assert angle(x, -x) == pytest.approx(math.pi)
    assert angle(x, 0 * x) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_slerp_follows_the_arc(dtype: torch.dtype):
    """From [1, 0] to [0, 1] in three parts of 30 degrees: cos 30 = 0.866025; a line would cut through [2/3, 1/3]."""
    found, between = slerp(vector(1, 0).to(dtype), vector(0, 1).to(dtype), 1 / 3)
    assert between == pytest.approx(math.pi / 2)
    torch.testing.assert_close(found, torch.tensor([math.sqrt(3) / 2, 0.5], dtype=torch.float64))
    for share, end in ((0, vector(1, 0)), (1, vector(0, 1))):
        torch.testing.assert_close(slerp(vector(1, 0), vector(0, 1), share)[0], end.double())


def test_slerp_of_a_matrix_takes_it_for_one_vector():
    """Rows that have other angles: [[1, 0], [0, 1]] and [[1, 0], [0, -1]] are at cos = (1 - 1) / 2 = 0, 90 degrees;
    halfway each has sin 45 / sin 90 = 0.7071."""
    found, between = slerp(torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, -1.0]]), 0.5)
    assert between == pytest.approx(math.pi / 2)
    torch.testing.assert_close(found, torch.tensor([[math.sqrt(2), 0.0], [0.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("b", [[2, 4, 4.001], [-1, -2, -2], [0, 0, 0], [1, 2, 2]])
def test_slerp_along_the_line_where_there_is_no_arc(b: list[float]):
    """Nearly parallel, opposite, zero, the same: a quarter of the way from [1, 2, 2]."""
    a, b = vector(1, 2, 2), vector(*b)
    found, _ = slerp(a, b, 0.25)
    torch.testing.assert_close(found, (0.75 * a + 0.25 * b).double(), rtol=1e-6, atol=1e-7)
    assert torch.isfinite(found).all()


def test_slerp_hardly_jumps_where_the_line_takes_over():
    """At 0.0316 radians arc and line are 0.0316^2 / 8 = 1.25e-4 apart."""
    for radians in (0.0316, 0.0317):
        b = torch.tensor([math.cos(radians), math.sin(radians)], dtype=torch.float64)
        found, _ = slerp(vector(1, 0), b, 0.5)
        assert 1 - 1.3e-4 < found.norm().item() <= 1 + 1e-12
