"""Generalised Jensen-Shannon divergence between teacher and student, between forward and reverse KL by one weight.

    L = T^2 * sum_i m_i * JSD_beta(p_i, q_i),   p = softmax(z_teacher / T),   q = softmax(z_student / T),
    JSD_beta = beta * KL(p || r) + (1 - beta) * KL(q || r),   r = beta * p + (1 - beta) * q,   0 < beta < 1

(GKD, arXiv 2306.13649 section 2: p is the teacher, beta its weight in the mixture). beta = 1/2 is the usual one, which
is symmetric and at most ln 2. At the ends it vanishes: JSD_beta / beta -> KL(p || q) as beta -> 0, and
JSD_beta / (1 - beta) -> KL(q || p) as beta -> 1. It is not rescaled here, nor is an end taken for the KL itself as some
implementations do, so that a small beta means a small loss. The factor T^2 is that of `forward_kl`.

With d = log p - log q, the logarithm of whichever has the larger weight in r is taken first, the other from it:

    log(q / r) = -log(1 + beta * expm1(d)),          log(p / r) = log(q / r) + d    for beta < 1/2,
    log(p / r) = -log(1 + (1 - beta) * expm1(-d)),   log(q / r) = log(p / r) - d    else,
    dL/dz_s = T * m_i * (1 - beta) * q * (log(q / r) - KL(q || r)),

so that p and q that are near each other, or a beta that is near an end, leave no difference of equal numbers. d is kept
within +-80: of two probabilities that are e^80 apart the smaller adds nothing to any sum, nor does its logarithm. p and
q must be known before r is: three collectives per chunk instead of two.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

from bielik_nemo.losses.divergence import divergence
from bielik_nemo.losses.vocab_parallel import reduce_


def _chunk(
    zs: Tensor, zt: Tensor, weight: Tensor, grad: Tensor | None, group: ProcessGroup | None, *, beta: float
) -> Tensor:
    """JSD of every token of a chunk; see `divergence`."""
    q, p = zs.exp(), zt.exp()
    z_s, z_t = reduce_(torch.stack([q.sum(-1), p.sum(-1)]), ReduceOp.SUM, group)
    q /= z_s.unsqueeze(-1)
    p /= z_t.unsqueeze(-1)
    d = zt.sub_(zs).sub_((z_t.log() - z_s.log()).unsqueeze(-1)).clamp_(-80, 80)
    if beta < 0.5:
        log_q = d.expm1().mul_(beta).log1p_().neg_()
        log_p = d.add_(log_q)
    else:
        log_p = d.neg().expm1_().mul_(1 - beta).log1p_().neg_()
        log_q = torch.sub(log_p, d, out=d)
    kl_p, kl_q = reduce_(torch.stack([p.mul_(log_p).sum(-1), (q * log_q).sum(-1)]), ReduceOp.SUM, group)
    if grad is not None:
        log_q -= kl_q.unsqueeze(-1)
        log_q *= q
        grad.copy_(log_q.mul_((1 - beta) * weight.unsqueeze(-1)))
    return beta * kl_p + (1 - beta) * kl_q


def jensen_shannon(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    tp_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over counted tokens of T^2 * JSD_beta(teacher, student), in nats, and the number of counted tokens.

    Args:
        student: logits `[s, b, v/tp]`; gradients flow here only.
        teacher: logits `[s, b, v/tp]`, any floating dtype.
        mask: `[s, b]`, weight of each token, usually 0 or 1.
        beta: weight of the teacher, between 0 (beta times forward KL) and 1 (1 - beta times reverse KL), both excluded.
        temperature: T > 0.
        vocab_size: true vocabulary size; columns past it are padding and never count.
        tp_group: tensor-parallel group that shares the vocabulary; three collectives per chunk of tokens.

    Returns:
        The sum (the same on every tensor-parallel rank; fp64 for an fp64 student) and `mask.sum()`, both fp32 scalars.

    Raises:
        ValueError: shapes differ, beta is not between 0 and 1, the temperature is not a positive number, or
            `vocab_size` is more than the columns.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta={beta}: must lie between 0 and 1, both excluded")
    chunk = partial(_chunk, beta=beta)
    return divergence(chunk, student, teacher, mask, temperature=temperature, vocab_size=vocab_size, tp_group=tp_group)
