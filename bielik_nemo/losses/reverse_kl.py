"""Reverse KL divergence of the student from the teacher: the student avoids what the teacher finds unlikely.

    L = T^2 * sum_i m_i * KL(q_i || p_i),   p = softmax(z_teacher / T),   q = softmax(z_student / T)

(MiniLLM, arXiv 2306.08543 section 2.1, there on texts that the student wrote; GKD, arXiv 2306.13649 section 2). Forward
KL makes a student that is too small spread over all of the teacher's modes, reverse KL makes it choose among them. The
factor T^2 is that of `forward_kl`. With p and q computed from maxima m and partition sums Z,

    KL = (1/Z_s) sum_v exp(z_s - m_s) * d_v - log Z_s + log Z_t,   d = (z_s - m_s) - (z_t - m_t),
    dL/dz_s = T * m_i * q * (d - sum_v q_v d_v),

so that a shard of the vocabulary needs the same three sums and two collectives per chunk as forward KL does.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

from bielik_nemo.losses.divergence import divergence
from bielik_nemo.losses.vocab_parallel import reduce_


def _chunk(zs: Tensor, zt: Tensor, weight: Tensor, grad: Tensor | None, group: ProcessGroup | None) -> Tensor:
    """KL of every token of a chunk; see `divergence`."""
    es = zs.exp()
    d = zs.sub_(zt)
    sums = torch.stack([es.sum(-1), zt.exp_().sum(-1), (es * d).sum(-1)])
    z_s, z_t, dot = reduce_(sums, ReduceOp.SUM, group)
    if grad is not None:
        d -= (dot / z_s).unsqueeze(-1)
        d *= es
        grad.copy_(d.mul_((weight / z_s).unsqueeze(-1)))
    return dot / z_s - z_s.log() + z_t.log()


def reverse_kl(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    tp_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over counted tokens of T^2 * KL(student || teacher), in nats, and the number of counted tokens.

    Args:
        student: logits `[s, b, v/tp]`; gradients flow here only.
        teacher: logits `[s, b, v/tp]`, any floating dtype; finite, for KL is infinite where the teacher rules out a
            word that the student does not.
        mask: `[s, b]`, weight of each token, usually 0 or 1.
        temperature: T > 0.
        vocab_size: true vocabulary size; columns past it are padding and never count.
        tp_group: tensor-parallel group that shares the vocabulary; two collectives per chunk of tokens.

    Returns:
        The sum (the same on every tensor-parallel rank; fp64 for an fp64 student) and `mask.sum()`, both fp32 scalars.

    Raises:
        ValueError: shapes differ, the temperature is not a positive number, or `vocab_size` is more than the columns.
    """
    return divergence(_chunk, student, teacher, mask, temperature=temperature, vocab_size=vocab_size, tp_group=tp_group)
