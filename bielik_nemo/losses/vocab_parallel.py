"""What all losses on vocabulary-sharded logits share: which columns are real, reductions over shards, chunks of tokens.

And the walk over these chunks that makes a loss and its gradient at once.

Legend: n tokens (s * b), v columns on this rank, tp ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

CHUNK_BYTES = {"cpu": 4 * 2**20, "cuda": 64 * 2**20}
"""Size of one fp32 copy of a chunk of logits; a loss holds a handful of them, never one of all tokens.

A CPU wants them in its cache (64 MiB takes four times as long), a GPU wants few kernels and collectives.
"""


def tp_rank(group: ProcessGroup | None) -> int:
    """Rank within the tensor-parallel group; 0 without one."""
    return 0 if group is None else torch.distributed.get_rank(group)


def real_columns(logits: Tensor, vocab_size: int | None, group: ProcessGroup | None) -> int:
    """Columns of this rank's shard that are vocabulary and not Megatron's padding.

    Args:
        logits: `[..., v]`.
        vocab_size: true size of the vocabulary; None: no column is padding.
        group: tensor-parallel group; every rank holds as many columns.

    Raises:
        ValueError: the ranks together hold fewer columns than the vocabulary has tokens.
    """
    width = logits.shape[-1]
    if vocab_size is None:
        return width
    total = width * (1 if group is None else torch.distributed.get_world_size(group))
    if not 0 < vocab_size <= total:
        raise ValueError(f"vocab_size={vocab_size}: the logits have {total} columns; allowed: 1 to {total}")
    return min(max(vocab_size - tp_rank(group) * width, 0), width)


def own_columns(ids: Tensor, logits: Tensor, columns: int, group: ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """Where token ids stand on this rank, and which of them do: int64 and bool, both of the shape of `ids`.

    Args:
        ids: token ids, any integer dtype.
        logits: `[..., v]`, this rank's shard.
        columns: how many of its columns are real.
        group: tensor-parallel group.

    Returns:
        Columns of the shard, some real one (or 0) for an id that is not this rank's, and whether the id is.
    """
    index = ids.long() - tp_rank(group) * logits.shape[-1]
    mine = (index >= 0) & (index < columns)
    return index.clamp_(0, max(columns - 1, 0)), mine


def check_tokens(logits: Tensor, **values: Tensor) -> None:
    """Raise ValueError for one of `values` that is not `[s, b]` as the logits `[s, b, v]` want it."""
    for name, value in values.items():
        if value.shape != logits.shape[:-1]:
            raise ValueError(f"{name} is {list(value.shape)}, logits want {list(logits.shape[:-1])}")


def check_temperature(temperature: float) -> None:
    """Raise ValueError for a temperature that nothing can be divided by."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature}: must be positive and finite")


def reduce_(tensor: Tensor, op: ReduceOp.RedOpType, group: ProcessGroup | None) -> Tensor:
    """All-reduce in place over the tensor-parallel group; no collective without one."""
    if group is not None:
        torch.distributed.all_reduce(tensor, op=op, group=group)
    return tensor


def row_max(z: Tensor) -> Tensor:
    """Largest value of each row `[n, v] -> [n]`; minus infinity where this rank holds no real column."""
    return z.amax(dim=-1) if z.shape[-1] else z.new_full(z.shape[:1], -torch.inf)


def chunks(x: Tensor) -> Iterator[slice]:
    """Slices of the rows of `x` `[n, v]` whose fp32 copies take at most `CHUNK_BYTES`, one row at least.

    `v` counts padding columns too: a chunk costs collectives, so all ranks must make the same chunks.
    """
    rows, width = x.shape
    size = max(1, CHUNK_BYTES["cpu" if x.is_cpu else "cuda"] // (4 * width))
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def upcast(x: Tensor) -> Tensor:
    """float32, or float64 where the input already is."""
    return x if x.dtype == torch.float64 else x.float()


def scale_rows_(grad: Tensor, factor: Tensor) -> Tensor:
    """Multiply rows `[n, v]` in place by `factor` `[n, 1]`, both at the precision of `factor`.

    In chunks, because a CPU forms the product of bf16 and fp32 in an fp32 copy of the whole.
    """
    for part in chunks(grad):
        grad[part] *= factor[part]
    return grad


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, columns, term):
        rows = logits.reshape(-1, logits.shape[-1])
        grad = torch.zeros_like(rows) if logits.requires_grad else None
        total = upcast(rows.new_zeros(()))
        for part in chunks(rows):
            total += term(part, rows[part, :columns], None if grad is None else grad[part, :columns])
        if grad is not None:
            ctx.save_for_backward(grad)
        ctx.shape = logits.shape
        return total

    @staticmethod
    def backward(ctx, grad_output):
        (grad,) = ctx.saved_tensors  # scaled in place: a second walk of the graph is an error
        return scale_rows_(grad, grad_output.expand(len(grad), 1)).view(ctx.shape), None, None


def sum_over_chunks(logits: Tensor, columns: int, term: Callable[[slice, Tensor, Tensor | None], Tensor]) -> Tensor:
    """Sum over all tokens, whose gradient is written chunk by chunk in the dtype of the logits while it is computed.

    Args:
        logits: `[s, b, v]`; gradients flow here only.
        columns: how many of the columns are real; the others' gradient is zero.
        term: `term(part, x, grad)` returns the sum over the tokens of one chunk, a scalar, and writes its gradient with
            respect to `x` into `grad`, where there is one; `part` are the rows of the chunk out of s * b and `x` and
            `grad` its logits and their gradient, `[n, columns]`. `x` is the input itself and must stay as it is.

    Returns:
        A scalar, fp32, or fp64 for fp64 logits; its graph can be walked once.
    """
    return _Sum.apply(logits, columns, term)
