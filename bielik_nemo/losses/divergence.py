"""What the divergences between a student's and a teacher's logits share: checks, temperature, chunks, the sum.

    L = T^2 * sum_i m_i * D(p_i, q_i),   p = softmax(z_teacher / T),   q = softmax(z_student / T)

A divergence D itself is a function of one chunk of tokens, whose softened logits come with their maxima taken off.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

from bielik_nemo.losses.vocab_parallel import (
    check_temperature,
    check_tokens,
    real_columns,
    reduce_,
    row_max,
    sum_over_chunks,
    upcast,
)

Chunk = Callable[[Tensor, Tensor, Tensor, Tensor | None, ProcessGroup | None], Tensor]
"""`chunk(zs, zt, weight, grad, group)` returns D of every token, `[n]`, the same on every rank of the group.

zs, zt: softened logits `[n, v]` of student and teacher less the largest of their token, fp32 or fp64, to overwrite.
weight: `[n]`; where `grad` `[n, v]` is given, weight * dD/dzs is written into it. group: tensor-parallel group.
"""


def divergence(
    chunk: Chunk,
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    *,
    temperature: float,
    vocab_size: int | None,
    tp_group: ProcessGroup | None,
) -> tuple[Tensor, Tensor]:
    """Sum over counted tokens of T^2 times a divergence, and the number of counted tokens.

    Arguments, results and errors are those of `forward_kl`. One collective per chunk of tokens and the divergence's.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student logits {list(student.shape)} and teacher logits {list(teacher.shape)} must agree")
    check_tokens(student, mask=mask)
    check_temperature(temperature)
    columns = real_columns(student, vocab_size, tp_group)
    t, m = teacher.detach().flatten(0, -2), mask.detach().flatten()

    def term(part: slice, x: Tensor, grad: Tensor | None) -> Tensor:
        zs = upcast(x) / temperature
        zt = t[part, :columns].to(zs.dtype) / temperature
        peak = reduce_(torch.stack([row_max(zs), row_max(zt)]), ReduceOp.MAX, tp_group)
        zs -= peak[0].unsqueeze(-1)
        zt -= peak[1].unsqueeze(-1)
        weight = m[part].to(zs.dtype) * temperature  # dL/dz = T^2 m dD/d(z/T) / T
        return torch.dot(chunk(zs, zt, weight, grad, tp_group), weight * temperature)

    return sum_over_chunks(student, columns, term), mask.sum(dtype=torch.float32)
