"""What all losses on vocabulary-sharded logits share: which columns are real, reductions over shards, chunks of tokens.

Legend: n tokens (s * b), v columns on this rank, tp ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

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
