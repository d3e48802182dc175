"""Log-probabilities of answers from vocabulary-sharded logits: one number for each token, summed over each answer.

log softmax(z)[label] is cross-entropy up to its sign, and so are its two collectives of numbers per token: no rank ever
holds the logits of the whole vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from bielik_nemo.losses.cross_entropy import token_cross_entropy
from bielik_nemo.losses.vocab_parallel import check_tokens


def token_log_probs(
    logits: Tensor, labels: Tensor, *, vocab_size: int | None = None, tp_group: ProcessGroup | None = None
) -> Tensor:
    """Log-probability of every label, in nats: logits `[s, b, v/tp]`, labels `[s, b]` -> fp32 `[s, b]`.

    Raises:
        ValueError: see `token_cross_entropy`.
    """
    return -token_cross_entropy(logits, labels, vocab_size=vocab_size, tp_group=tp_group)


def answer_log_probs(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor,
    answers: Tensor,
    count: int,
    *,
    vocab_size: int | None = None,
    tp_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each answer, summed over its counted tokens, in nats, and their number.

    Args:
        logits: `[s, b, v/tp]`.
        labels: `[s, b]`, token ids.
        mask: `[s, b]`, 0 or 1: which tokens count.
        answers: `[s, b]` int64, the number of the token's answer within its sequence, below `count`; -1: of none.
        count: most answers of a sequence.
        vocab_size: true vocabulary size; columns past it are padding and never count.
        tp_group: tensor-parallel group that shares the vocabulary.

    Returns:
        Two `[b, count]`, the same on every tensor-parallel rank: sums (fp32; fp64 for fp64 logits), and the number of
        tokens (fp32); 0 and 0 for an answer that is not there.

    Raises:
        ValueError: shapes differ, or there are fewer columns than `vocab_size`.
    """
    check_tokens(logits, labels=labels, mask=mask, answers=answers)
    counted = mask * (answers >= 0)
    place = answers.clamp(min=0)
    each = token_log_probs(logits, labels, vocab_size=vocab_size, tp_group=tp_group)
    # In fp64: thousands of nats are to be compared to a thousandth, whatever the order in which a GPU adds them up.
    zeros = torch.zeros(count, labels.shape[1], dtype=torch.float64, device=logits.device)
    sums = zeros.scatter_add(0, place, (each * counted).double())
    tokens = zeros.scatter_add(0, place, counted.double())
    return sums.T.to(each.dtype), tokens.T.float()
