"""Forward KL divergence from samples of the teacher: its distribution need not be kept, a few token ids will do.

Random sampling KD (arXiv 2503.16870). For every token, N ids x_n are drawn with replacement from the teacher's softmax
p (temperature 1), and their mean surprisal h = -(1/N) sum_n log p(x_n) is kept beside them. Then

    L = sum_i m_i * ( -(1/N) sum_n log q(x_n) - h ),   q = softmax(z_student),   dL/dz = m_i * (q - counts / N),

whose means over draws are KL(p || q) and its gradient, so that training follows forward KL at full width without bias;
the teacher's k most likely tokens alone would not do that. A single token's value can be negative.

Deviations: `engine.teacher_pass` draws the ids of a token by evenly spaced numbers, whose counts have the same mean and
less variance than those of independent ones. And the source needs no h, which moves no gradient. The entropy H(p), the
mean of h, would do for the value; with h, from the same draws, the value's variance is that of log(p / q), for
independent draws about 2 KL / N for a student that is near, instead of that of log q, and a student that equals the
teacher has loss 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

from bielik_nemo.losses.vocab_parallel import (
    check_tokens,
    chunks,
    own_columns,
    real_columns,
    reduce_,
    row_max,
    sum_over_chunks,
    tp_rank,
    upcast,
)


def sampled_kl(
    student: Tensor,
    ids: Tensor,
    surprisal: Tensor,
    mask: Tensor,
    *,
    vocab_size: int | None = None,
    tp_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over counted tokens of an unbiased estimate of KL(teacher || student), in nats, and their number.

    Args:
        student: logits `[s, b, v/tp]`; gradients flow here only.
        ids: `[s, b, n]`, token ids below `vocab_size` that `draw` took from the teacher, any integer dtype.
        surprisal: `[s, b]`, mean of -log p over these ids, in nats, from `draw`.
        mask: `[s, b]`, weight of each token, usually 0 or 1.
        vocab_size: true vocabulary size; columns past it are padding and never count.
        tp_group: tensor-parallel group that shares the vocabulary; two collectives per chunk of tokens.

    Returns:
        The sum (the same on every tensor-parallel rank; fp64 for an fp64 student) and `mask.sum()`, both fp32 scalars.

    Raises:
        ValueError: shapes differ, there are no ids, or `vocab_size` is more than the columns.
    """
    tokens = list(student.shape[:-1])
    if list(ids.shape[:-1]) != tokens or ids.shape[-1] == 0:
        raise ValueError(f"ids are {list(ids.shape)}, logits want {tokens} and at least one id for each")
    check_tokens(student, surprisal=surprisal, mask=mask)
    columns = real_columns(student, vocab_size, tp_group)
    drawn, h, m = ids.flatten(0, -2), surprisal.detach().flatten(), mask.detach().flatten()

    def term(part: slice, x: Tensor, grad: Tensor | None) -> Tensor:
        z = upcast(x)
        z = z - reduce_(row_max(z), ReduceOp.MAX, tp_group).unsqueeze(-1)  # a copy: fp32 logits stay as they are
        index, mine = own_columns(drawn[part], student, columns, tp_group)
        own = torch.where(mine, z.gather(-1, index), 0).mean(-1) if columns else z.new_zeros(len(z))
        e = z.exp_()
        z_s, hit = reduce_(torch.stack([e.sum(-1), own]), ReduceOp.SUM, tp_group)
        weight = m[part].to(z.dtype)
        if grad is not None:
            e *= (weight / z_s).unsqueeze(-1)
            if columns:
                e.scatter_add_(-1, index, mine * (weight / -ids.shape[-1]).unsqueeze(-1))
            grad.copy_(e)
        return torch.dot(z_s.log() - hit - h[part].to(z.dtype), weight)

    return sum_over_chunks(student, columns, term), mask.sum(dtype=torch.float32)


@torch.no_grad()
def draw(
    teacher: Tensor,
    uniforms: Tensor,
    *,
    vocab_size: int | None = None,
    tp_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Token ids drawn with replacement from p = softmax(teacher), and their mean surprisal -(1/N) sum_n log p(x_n).

    By inversion: the id whose stretch of the cumulative distribution holds the uniform number, in float64, so that the
    same numbers give the same ids however the vocabulary is split.

    Args:
        teacher: logits `[t, v/tp]`, any floating dtype.
        uniforms: `[t, n]` in [0, 1), float64, the same on every tensor-parallel rank.
        vocab_size: true vocabulary size; columns past it are padding and are never drawn.
        tp_group: tensor-parallel group that shares the vocabulary; four collectives per chunk of tokens.

    Returns:
        ids `[t, n]` int64 and surprisal `[t]` fp32 in nats, the same on every rank.

    Raises:
        ValueError: shapes differ, or `vocab_size` is more than the columns.
    """
    if uniforms.shape[:-1] != teacher.shape[:-1]:
        raise ValueError(f"uniforms are {list(uniforms.shape)}, logits want {list(teacher.shape[:-1])} and a last axis")
    width, rank = teacher.shape[-1], tp_rank(tp_group)
    columns = real_columns(teacher, vocab_size, tp_group)
    ranks = 1 if tp_group is None else torch.distributed.get_world_size(tp_group)
    ids = torch.empty(uniforms.shape, dtype=torch.int64, device=teacher.device)
    surprisal = teacher.new_empty(len(teacher), dtype=torch.float32)
    for part in chunks(teacher):
        z = upcast(teacher[part, :columns])
        z = z - reduce_(row_max(z), ReduceOp.MAX, tp_group).unsqueeze(-1)
        cumulative = z.exp().double().cumsum(-1)
        shares = cumulative.new_zeros(ranks + 1, len(z))
        if columns:
            shares[rank + 1] = cumulative[:, -1]
        bounds = reduce_(shares, ReduceOp.SUM, tp_group).cumsum(0)
        at = uniforms[part] * bounds[-1].unsqueeze(-1)
        before, after = bounds[rank].unsqueeze(-1), bounds[rank + 1].unsqueeze(-1)
        mine = (at >= before) & (at < after)
        found = torch.searchsorted(cumulative, at - before, right=True).clamp_(max=max(columns - 1, 0))
        own = torch.where(mine, z.gather(-1, found), 0).mean(-1) if columns else z.new_zeros(len(z))
        ids[part] = reduce_((found + rank * width) * mine, ReduceOp.SUM, tp_group)
        surprisal[part] = bounds[-1].log() - reduce_(own, ReduceOp.SUM, tp_group)
    return ids, surprisal
