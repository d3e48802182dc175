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

import math

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

from bielik_nemo.losses.vocab_parallel import chunks, real_columns, reduce_, row_max, scale_rows_, upcast


class _ForwardKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, mask, temperature, columns, group):
        rows, width = mask.numel(), student.shape[-1]
        s, t, m = student.reshape(rows, width), teacher.reshape(rows, width), mask.reshape(rows)
        grad = torch.zeros_like(s) if student.requires_grad else None
        total = upcast(s.new_zeros(()))
        for part in chunks(s):
            zs = upcast(s[part, :columns]) / temperature
            zt = t[part, :columns].to(zs.dtype) / temperature
            peak = reduce_(torch.stack([row_max(zs), row_max(zt)]), ReduceOp.MAX, group)
            zs -= peak[0].unsqueeze(-1)
            zt -= peak[1].unsqueeze(-1)
            es, et = zs.exp(), zt.exp()
            sums = torch.stack([es.sum(-1), et.sum(-1), (et * (zt - zs)).sum(-1)])
            z_s, z_t, dot = reduce_(sums, ReduceOp.SUM, group)
            scale = m[part].to(total.dtype) * temperature
            total += torch.dot(dot / z_t - z_t.log() + z_s.log(), scale * temperature)
            if grad is not None:
                es *= (scale / z_s).unsqueeze(-1)
                es -= et.mul_((scale / z_t).unsqueeze(-1))
                grad[part, :columns] = es.to(grad.dtype)
        if grad is not None:
            ctx.save_for_backward(grad)
        ctx.shape = student.shape
        return total

    @staticmethod
    def backward(ctx, grad_output):
        (grad,) = ctx.saved_tensors  # scaled in place: a second walk of the graph is an error
        return scale_rows_(grad, grad_output.expand(len(grad), 1)).view(ctx.shape), None, None, None, None, None


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
    if student.shape != teacher.shape:
        raise ValueError(f"student logits {list(student.shape)} and teacher logits {list(teacher.shape)} must agree")
    if mask.shape != student.shape[:-1]:
        raise ValueError(f"mask is {list(mask.shape)}, logits want {list(student.shape[:-1])}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature}: must be positive and finite")
    columns = real_columns(student, vocab_size, tp_group)
    total = _ForwardKL.apply(student, teacher.detach(), mask, temperature, columns, tp_group)
    return total, mask.sum(dtype=torch.float32)
