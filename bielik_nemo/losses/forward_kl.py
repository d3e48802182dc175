"""Forward KL divergence of the student from the teacher: the distillation loss of Minitron and Bielik-Minitron.

    L = T^2 * sum_i m_i * KL(p_i || q_i),   p = softmax(z_teacher / T),   q = softmax(z_student / T)

(arXiv 2407.14679 section 3, arXiv 2603.11881 section 4). The factor T^2 keeps the gradient's size independent of the
temperature (Hinton et al., arXiv 1503.02531 section 2); NeMo's and Model Optimizer's Megatron losses leave it out.
With p and q computed from maxima m and partition sums Z,

    KL = (1/Z_t) sum_v exp(z_t - m_t) * ((z_t - m_t) - (z_s - m_s)) - log Z_t + log Z_s,   dL/dz_s = T * m_i * (q - p),

so that a shard of the vocabulary needs three sums and two collectives per chunk, and teacher or student are never held
in fp32 as a whole: the gradient is written chunk by chunk in the student's dtype while the loss is computed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

from bielik_nemo.losses.divergence import divergence
from bielik_nemo.losses.vocab_parallel import reduce_


def _chunk(zs: Tensor, zt: Tensor, weight: Tensor, grad: Tensor | None, group: ProcessGroup | None) -> Tensor:
    """KL of every token of a chunk; see `divergence`."""
    es, et = zs.exp(), zt.exp()
    sums = torch.stack([es.sum(-1), et.sum(-1), (et * (zt - zs)).sum(-1)])
    z_s, z_t, dot = reduce_(sums, ReduceOp.SUM, group)
    if grad is not None:
        es *= (weight / z_s).unsqueeze(-1)
        es -= et.mul_((weight / z_t).unsqueeze(-1))
        grad.copy_(es)
    return dot / z_t - z_t.log() + z_s.log()


def forward_kl(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    tp_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over counted tokens of T^2 * KL(teacher || student), in nats, and the number of counted tokens.

    Args:
        student: logits `[s, b, v/tp]`; gradients flow here only.
        teacher: logits `[s, b, v/tp]`, any floating dtype.
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
