"""Two ways to make one tensor of several: the weighted mean, and the arc between two.

Spherical interpolation (Shoemake 1985) of a tensor as one vector, as merging tools do it: of a and b, with the angle w
between them and the share t of b,

    slerp(a, b, t) = (sin((1 - t) w) a + sin(t w) b) / sin w.

Lengths are not made equal before: those of a model's relatives hardly differ. Where a and b are nearly parallel, or
nearly opposite, so that sin w is next to nothing, it is the straight line, from the same angle on as in mergekit.
Everything is computed in float64, so that a mean of equal tensors is that tensor, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

NEARLY_PARALLEL = 0.9995
"""Cosine from which on two tensors are taken for parallel: an angle of 0.032."""


def weighted_mean(tensors: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_i w_i x_i / sum_i w_i, float64, with one `x_i` after another in memory.

    Args:
        tensors: of one shape, any floating dtype.
        weights: one for each, none below zero; their sum is positive.
    """
    total = math.fsum(weights)
    parts = (tensor.double() * (weight / total) for tensor, weight in zip(tensors, weights, strict=True))
    mean = next(parts)
    for part in parts:
        mean += part
    return mean


def angle(a: Tensor, b: Tensor) -> float:
    """Angle between two tensors of one shape as vectors, in radians, 0 to pi; 0 where one of them is zero.

    From the lengths of sum and difference (Kahan), which tell small angles that a cosine rounds to zero.
    """
    a, b = a.double(), b.double()
    lengths = a.norm(), b.norm()
    if not all(lengths):
        return 0.0
    a, b = a / lengths[0], b / lengths[1]
    return 2 * math.atan2((a - b).norm(), (a + b).norm())


def slerp(a: Tensor, b: Tensor, share: float) -> tuple[Tensor, float]:
    """The point at `share` (0: a, 1: b) of the arc from a to b, float64, and the angle between them in radians.

    Args:
        a: of any shape and floating dtype.
        b: of the same shape.
        share: of b, 0 to 1.
    """
    between = angle(a, b)
    if abs(math.cos(between)) > NEARLY_PARALLEL:
        return torch.lerp(a.double(), b.double(), share), between
    first, second = math.sin((1 - share) * between), math.sin(share * between)
    return (first * a.double() + second * b.double()) / math.sin(between), between
