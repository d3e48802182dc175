"""How often the student's most likely word is the teacher's: a share that is watched, not trained on.

The word is the first of those whose logit is the largest, over the whole vocabulary: each shard offers its largest
logit and, where that is the largest of all, the first id that has it; the smallest wins. Padding is never a word.
Logits are read as they are, without a copy in another precision: two collectives for all tokens together.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

from bielik_nemo.losses.vocab_parallel import check_tokens, real_columns, reduce_, tp_rank, upcast


@torch.no_grad()
def most_likely(logits: Tensor, *, vocab_size: int | None = None, tp_group: ProcessGroup | None = None) -> Tensor:
    """The first id among those of the largest logit: `[s, b, v/tp]` -> int64 `[s, b]`, the same on every rank.

    Args:
        logits: any floating dtype.
        vocab_size: true vocabulary size; columns past it are padding and never count.
        tp_group: tensor-parallel group that shares the vocabulary.

    Raises:
        ValueError: `vocab_size` is more than the columns.
    """
    columns = real_columns(logits, vocab_size, tp_group)
    tokens, none = logits.shape[:-1], torch.iinfo(torch.int64).max
    if columns:
        largest, first = logits[..., :columns].max(dim=-1)
        largest, first = upcast(largest), first + tp_rank(tp_group) * logits.shape[-1]
    else:
        largest = upcast(logits.new_full(tokens, -torch.inf))
        first = torch.full(tokens, none, device=logits.device)
    here = largest == reduce_(largest.clone(), ReduceOp.MAX, tp_group)
    return reduce_(first.masked_fill_(~here, none), ReduceOp.MIN, tp_group)


@torch.no_grad()
def agreement(
    student: Tensor,
    words: Tensor,
    mask: Tensor,
    *,
    vocab_size: int | None = None,
    tp_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Number of counted tokens whose most likely word is the given one, and the number of counted tokens.

    Args:
        student: logits `[s, b, v/tp]`.
        words: `[s, b]`, token ids: the teacher's `most_likely`.
        mask: `[s, b]`, weight of each token, usually 0 or 1.
        vocab_size: true vocabulary size; columns past it are padding and never count.
        tp_group: tensor-parallel group that shares the vocabulary.

    Returns:
        The sum of the weights of the tokens that agree and `mask.sum()`, both fp32 scalars without a gradient, the same
        on every tensor-parallel rank.

    Raises:
        ValueError: shapes differ, or `vocab_size` is more than the columns.
    """
    check_tokens(student, words=words, mask=mask)
    agreed = most_likely(student, vocab_size=vocab_size, tp_group=tp_group) == words
    return (agreed * mask).sum(dtype=torch.float32), mask.sum(dtype=torch.float32)
