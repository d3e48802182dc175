"""Normal equations give what a dense solver gives, whatever the batches.

By hand, one input and one output: X = (1, 2), R = (3, 4), so G = 1 + 4 = 5 and C = 3 + 8 = 11. Without damping dW is
11 / 5 = 2.2 and leaves (3 - 2.2)^2 + (4 - 4.4)^2 = 0.64 + 0.16 = 0.8 of 9 + 16 = 25. With ridge 0.1, lambda = 0.5 and
dW = 11 / 5.5 = 2.
"""

from __future__ import annotations

import pytest
import torch

from bielik_nemo.errors import ConfigError
from bielik_nemo.prune.least_squares import NormalEquations


def equations(x: torch.Tensor, residual: torch.Tensor, *sizes: int) -> NormalEquations:
    found = NormalEquations(x.shape[-1], residual.shape[-1])
    for a, b in zip(x.split(sizes or len(x)), residual.split(sizes or len(x)), strict=True):
        found.add(a, b)
    return found


def test_by_hand():
    found = equations(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]]))
    assert found.rows == 2
    assert found.squared_error.item() == 25
    change = found.solve(1e-12)
    assert change.item() == pytest.approx(2.2)
    assert found.error_after(change) == pytest.approx(0.8)
    assert found.solve(0.1).item() == pytest.approx(2.0)


def test_a_dense_solver_gives_the_same():
    """Damping is as many more rows sqrt(lambda) I with residual zero."""
    torch.manual_seed(0)
    x, residual = torch.randn(3, 40, 6), torch.randn(3, 40, 4)
    found = equations(x, residual, 2, 1)
    ridge = 0.05
    rows, targets = x.double().flatten(0, 1), residual.double().flatten(0, 1)
    damping = ridge * rows.square().sum() / 6
    rows_and = torch.cat([rows, damping.sqrt() * torch.eye(6, dtype=torch.float64)])
    expected = torch.linalg.lstsq(rows_and, torch.cat([targets, targets.new_zeros(6, 4)])).solution.T
    change = found.solve(ridge)
    torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-6)
    left = (targets - rows @ change.T).square().sum().item()
    assert found.error_after(change) == pytest.approx(left, rel=1e-5)


def test_an_exact_map_is_found_and_heavy_damping_changes_nothing():
    torch.manual_seed(0)
    x, true = torch.randn(50, 5), torch.randn(3, 5)
    found = equations(x, x @ true.T)
    torch.testing.assert_close(found.solve(1e-9).float(), true, rtol=1e-4, atol=1e-5)
    assert found.error_after(found.solve(1e-9)) < 1e-6 * found.squared_error.item()
    assert found.solve(1e9).abs().max() < 1e-8


def test_fewer_rows_than_inputs_are_damped():
    """Two rows, four inputs: G has rank 2, the damped one is still solved, and explains nearly all."""
    torch.manual_seed(0)
    found = equations(torch.randn(2, 4), torch.randn(2, 3))
    assert found.error_after(found.solve(1e-6)) < 1e-3 * found.squared_error.item()


@pytest.mark.parametrize("x", [torch.zeros(2, 3), torch.tensor([[1.0, float("nan"), 0.0]])])
def test_inputs_that_determine_nothing(x):
    with pytest.raises(ValueError, match="inputs are zero or not finite"):
        equations(x, torch.ones(len(x), 1)).solve(0.01)


def test_no_rows():
    with pytest.raises(ValueError, match="over 0 rows"):
        NormalEquations(2, 2).solve(0.01)


def test_damping_below_the_rounding_of_the_gram_matrix():
    """64 rows leave rank 64 of 1024, the rest is rounding of fp32 products, on both sides of zero."""
    torch.manual_seed(0)
    found = equations(torch.randn(64, 1024).abs() * torch.logspace(0, -3, 1024), torch.randn(64, 2))
    assert found.solve(1e-2).isfinite().all()
    with pytest.raises(ConfigError, match=r"prune.compensation.ridge: found 1e-08, allowed: more for 64 tokens"):
        found.solve(1e-8)
