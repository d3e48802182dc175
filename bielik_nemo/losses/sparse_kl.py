"""Forward KL divergence on the teacher's k most likely words, all the others kept as one bucket.

    L = T^2 * sum_i m_i * ( sum_{v in K} p_v log(p_v / q_v) + p_R log(p_R / q_R) ),   q = softmax(z_student / T),
    p_R = 1 - sum_{v in K} p_v,   q_R = sum_{v not in K} q_v

This is KL between the two distributions over the k words and "another one". It is at most the full KL(p || q), zero
where they agree on all k words, and equal to it where K is the vocabulary. Other top-k losses drop the tail and
renormalise p and q over K, which leaves the student's mass outside K unpunished, or spread it evenly; here the student
is held to the right mass outside K and is free in how to share it there. It is still biased, which `sampled_kl` is not:

    dL/dz_v = T * m_i * (q_v - p_v)   in K,       T * m_i * (q_v / q_R) * (q_R - p_R)   elsewhere.

q_R is never 1 - sum q_v: the words outside K have a maximum and a partition sum of their own, so that a tail of 1e-30
is as good as one of 1/2. p_R can be no better than the given log-probabilities; where rounding takes their sum over 1,
there is no tail, nor is there where K holds every word. Two collectives per chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

from bielik_nemo.losses.vocab_parallel import (
    check_temperature,
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


def sparse_kl(
    student: Tensor,
    ids: Tensor,
    log_probs: Tensor,
    mask: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    tp_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over counted tokens of T^2 * KL(teacher || student) with the tail as one word, in nats, and their number.

    Args:
        student: logits `[s, b, v/tp]`; gradients flow here only.
        ids: `[s, b, k]`, token ids below `vocab_size`, each at most once for a token, any integer dtype.
        log_probs: `[s, b, k]`, the teacher's log p of these ids in nats, not renormalised over them, any floating
            dtype; minus infinity is probability 0. At the same temperature, log_softmax(z_teacher / T): what k words
            have at another one depends on all the others.
        mask: `[s, b]`, weight of each token, usually 0 or 1.
        temperature: T > 0.
        vocab_size: true vocabulary size; columns past it are padding and never count, in the tail neither.
        tp_group: tensor-parallel group that shares the vocabulary; two collectives per chunk of tokens.

    Returns:
        The sum (the same on every tensor-parallel rank; fp64 for an fp64 student) and `mask.sum()`, both fp32 scalars.

    Raises:
        ValueError: shapes differ, there are no ids, the temperature is not a positive number, or `vocab_size` is more
            than the columns.
    """
    if ids.shape != log_probs.shape:
        raise ValueError(f"ids are {list(ids.shape)}, log_probs {list(log_probs.shape)}: they must agree")
    tokens = list(student.shape[:-1])
    if list(ids.shape[:-1]) != tokens or ids.shape[-1] == 0:
        raise ValueError(f"ids are {list(ids.shape)}, logits want {tokens} and at least one id for each")
    check_tokens(student, mask=mask)
    check_temperature(temperature)
    columns = real_columns(student, vocab_size, tp_group)
    top, given, m = ids.flatten(0, -2), log_probs.detach().flatten(0, -2), mask.detach().flatten()

    def term(part: slice, x: Tensor, grad: Tensor | None) -> Tensor:
        z = upcast(x) / temperature
        index, mine = own_columns(top[part], student, columns, tp_group)
        rest = z.scatter_add(-1, index, torch.where(mine, -torch.inf, 0).to(z.dtype)) if columns else z.clone()
        peak, peak_r = reduce_(torch.stack([row_max(z), row_max(rest)]), ReduceOp.MAX, tp_group)
        no_tail = peak_r == -torch.inf
        peak_r = torch.where(no_tail, peak, peak_r)
        z -= peak.unsqueeze(-1)
        rest -= peak_r.unsqueeze(-1)

        log_p = given[part].double()  # for the difference p_R
        p = log_p.exp()
        p_r = (1 - p.sum(-1)).clamp_(min=0).masked_fill_(no_tail, 0).to(z.dtype)
        log_p, p = log_p.to(z.dtype), p.to(z.dtype)
        own = z.gather(-1, index) if columns else torch.zeros_like(p)
        hit = torch.where(mine & (p > 0), p * (log_p - own), 0).sum(-1)
        e, e_r = z.exp_(), rest.exp_()
        z_s, z_r, hit = reduce_(torch.stack([e.sum(-1), e_r.sum(-1), hit]), ReduceOp.SUM, tp_group)
        z_r.clamp_(min=1)  # less only where there is no tail
        mass = p.sum(-1) + p_r  # 1, but for rounding
        kl = hit + mass * z_s.log() + torch.xlogy(p_r, p_r) - p_r * (peak_r - peak + z_r.log())
        weight = m[part].to(z.dtype) * temperature
        if grad is not None:
            e *= (weight * mass / z_s).unsqueeze(-1)
            e -= e_r.mul_((weight * p_r / z_r).unsqueeze(-1))
            if columns:
                e.scatter_add_(-1, index, mine * p * -weight.unsqueeze(-1))
            grad.copy_(e)
        return torch.dot(kl, weight * temperature)

    return sum_over_chunks(student, columns, term), mask.sum(dtype=torch.float32)


@torch.no_grad()
def top_k(
    teacher: Tensor,
    k: int,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    tp_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """The k most likely token ids, and log_softmax(teacher / T) of them over the whole vocabulary.

    Each rank finds k of its own columns, and of these all find the same k; the vocabulary is never gathered. Of ids
    that are equally likely, as many are in bf16, the smaller ones come first, so that no layout gives others.

    Args:
        teacher: logits `[t, v/tp]`, any floating dtype, worked on in fp32.
        k: how many.
        temperature: T > 0.
        vocab_size: true vocabulary size, below 2^31; columns past it are padding and never count.
        tp_group: tensor-parallel group that shares the vocabulary; three collectives per chunk of tokens.

    Returns:
        ids `[t, k]` int64, the most likely first, and log-probabilities `[t, k]` fp32 in nats, the same on every rank.

    Raises:
        ValueError: `k` is not between 1 and the vocabulary, the temperature is not a positive number, or `vocab_size`
            is more than the columns.
    """
    width, rank = teacher.shape[-1], tp_rank(tp_group)
    columns = real_columns(teacher, vocab_size, tp_group)
    ranks = 1 if tp_group is None else torch.distributed.get_world_size(tp_group)
    words = vocab_size or width * ranks
    if not 0 < k <= words:
        raise ValueError(f"k={k}: allowed: 1 to {words}, the vocabulary")
    check_temperature(temperature)
    ids = torch.empty(len(teacher), k, dtype=torch.int64, device=teacher.device)
    log_probs = teacher.new_empty(len(teacher), k, dtype=torch.float32)
    own, last = min(k, columns), 2**31 - 1
    backwards = last - rank * width - torch.arange(columns, device=teacher.device)
    for part in chunks(teacher):
        z = teacher[part, :columns].float() / temperature
        z -= reduce_(row_max(z), ReduceOp.MAX, tp_group).unsqueeze(-1)
        best = torch.full((len(z), ranks, k), torch.iinfo(torch.int64).min, device=z.device)
        best[:, rank, :own] = ((_ordered(z).long() << 32) + backwards).topk(own).values
        best = reduce_(best, ReduceOp.MAX, tp_group).flatten(1).topk(k).values
        ids[part] = last - (best & last)
        values = _ordered((best >> 32).int()).view(torch.float32)
        log_probs[part] = values - reduce_(z.exp_().sum(-1), ReduceOp.SUM, tp_group).log().unsqueeze(-1)
    return ids, log_probs


def _ordered(z: Tensor) -> Tensor:
    """The bits of fp32 numbers as int32 that compare as the numbers do; of such int32 the bits again."""
    bits = z.view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
