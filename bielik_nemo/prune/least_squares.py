"""Least-squares refit of a linear layer y = x W^T, from normal equations that are summed batch by batch.

Given inputs X `[n, f]` of the layer as it is now, and R `[n, d]`, what it should put out minus what it does,

    dW = argmin ||R - X dW^T||^2 + lambda ||dW||^2 = C (G + lambda I)^-1,   G = X^T X,  C = R^T X,

so that memory is f^2 + d f whatever the number of tokens n. Damping pulls towards the weights that are there, not to
zero: with few tokens, or lambda large, the plain cut is what is left. lambda = ridge * mean(diag G).

The idea is layer-wise reconstruction after pruning (optimal brain surgeon for a layer; ThiNet, arXiv 1707.06342
section 3.2; SparseGPT, arXiv 2301.00774 section 3); the residual form and the damping towards the present weights are
ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bielik_nemo.errors import ConfigError


class NormalEquations:
    """G, C and ||R||^2 of one layer, in float64."""

    def __init__(self, inputs: int, outputs: int, device: torch.device | str = "cpu"):
        self.gram = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        self.cross = torch.zeros(outputs, inputs, dtype=torch.float64, device=device)
        self.squared_error = torch.zeros((), dtype=torch.float64, device=device)
        self.rows = 0

    def add(self, x: Tensor, residual: Tensor) -> None:
        """Count one batch of tokens.

        Args:
            x: inputs `[..., f]`, any floating dtype.
            residual: `[..., d]`, as many rows.
        """
        x, residual = x.flatten(0, -2).float(), residual.flatten(0, -2).float()
        self.gram += x.T @ x
        self.cross += residual.T @ x
        self.squared_error += residual.double().square().sum()
        self.rows += len(x)

    def solve(self, ridge: float) -> Tensor:
        """The change dW `[d, f]` of the weight, float64.

        Args:
            ridge: damping relative to the mean of G's diagonal; positive.

        Raises:
            ConfigError: damping too small for as few rows, or rows as alike, as there are.
            ValueError: no row was added, all inputs are zero, or something in them is not finite.
        """
        scale = self.gram.diagonal().mean() if self.rows else torch.zeros(())
        if not (scale > 0 and torch.isfinite(self.gram).all() and torch.isfinite(self.cross).all()):
            raise ValueError(f"normal equations over {self.rows} rows: the inputs are zero or not finite")
        damped = self.gram + ridge * scale * torch.eye(len(self.gram), dtype=torch.float64, device=self.gram.device)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if failed:  # G is summed from fp32 products, whose rounding may leave eigenvalues below zero
            raise ConfigError(
                f"prune.compensation.ridge: found {ridge:g}, allowed: more for {self.rows:,} tokens and "
                f"{len(self.gram):,} inputs, whose normal equations cannot be solved so"
            )
        return torch.cholesky_solve(self.cross.T, factor).T

    def error_after(self, change: Tensor) -> float:
        """||R - X dW^T||^2 on the rows that were added."""
        explained = 2 * (change * self.cross).sum() - ((change @ self.gram) * change).sum()
        return max((self.squared_error - explained).item(), 0.0)
