"""Cross-entropy on vocabulary-sharded logits: -log softmax(z)[label], padding columns never counted.

Megatron's own `vocab_parallel_cross_entropy` lets the padded columns into the softmax; with zero weights there they
have logit 0, which is not minus infinity.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

from bielik_nemo.losses.vocab_parallel import chunks, own_columns, real_columns, reduce_, row_max, scale_rows_, upcast


class _TokenCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, columns, group):
        rows, width = labels.numel(), logits.shape[-1]
        x = logits.reshape(rows, width)
        index, mine = own_columns(labels.reshape(rows, 1), x, columns, group)
        mine = mine.squeeze(-1)
        grad = torch.zeros_like(x) if logits.requires_grad else None
        loss = upcast(x.new_zeros(rows))
        for part in chunks(x):
            z = upcast(x[part, :columns])
            z = z - reduce_(row_max(z), ReduceOp.MAX, group).unsqueeze(-1)  # a copy: fp32 logits stay as they are
            own = z.gather(-1, index[part]).squeeze(-1) if columns else z.new_zeros(len(z))
            e = z.exp_()
            total, label = reduce_(torch.stack([e.sum(-1), own * mine[part]]), ReduceOp.SUM, group)
            loss[part] = total.log() - label
            if grad is not None:
                e /= total.unsqueeze(-1)
                if columns:
                    e.scatter_add_(-1, index[part], -mine[part].to(e.dtype).unsqueeze(-1))
                grad[part, :columns] = e.to(grad.dtype)
        if grad is not None:
            ctx.save_for_backward(grad)
        ctx.shape = logits.shape
        return loss.view(labels.shape)

    @staticmethod
    def backward(ctx, grad_output):
        (grad,) = ctx.saved_tensors  # scaled in place: a second walk of the graph is an error
        return scale_rows_(grad, grad_output.reshape(-1, 1)).view(ctx.shape), None, None, None


def token_cross_entropy(
    logits: Tensor, labels: Tensor, *, vocab_size: int | None = None, tp_group: ProcessGroup | None = None
) -> Tensor:
    """Cross-entropy of every token, in nats: logits `[s, b, v/tp]`, labels `[s, b]` -> fp32 `[s, b]`.

    Two collectives per chunk of tokens. Labels must lie in `[0, vocab_size)`, but where they are masked out later.

    Raises:
        ValueError: shapes differ, or there are fewer columns than `vocab_size`.
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels are {list(labels.shape)}, logits want {list(logits.shape[:-1])}")
    columns = real_columns(logits, vocab_size, tp_group)
    return _TokenCrossEntropy.apply(logits, labels, columns, tp_group)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    vocab_size: int | None = None,
    tp_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum over counted tokens of the cross-entropy, in nats, and the number of counted tokens.

    Args:
        logits: `[s, b, v/tp]`.
        labels: `[s, b]`, token ids.
        mask: `[s, b]`, weight of each token, usually 0 or 1.
        vocab_size: true vocabulary size; columns past it are padding and never count.
        tp_group: tensor-parallel group that shares the vocabulary.

    Returns:
        The sum (the same on every tensor-parallel rank; fp64 for fp64 logits) and `mask.sum()`, both fp32 scalars.

    Raises:
        ValueError: shapes differ, or there are fewer columns than `vocab_size`.
    """
    if mask.shape != labels.shape:
        raise ValueError(f"mask is {list(mask.shape)}, labels are {list(labels.shape)}: they must agree")
    losses = token_cross_entropy(logits, labels, vocab_size=vocab_size, tp_group=tp_group)
    return (losses * mask).sum(), mask.sum(dtype=torch.float32)
