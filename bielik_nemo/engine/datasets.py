"""Megatron indexed datasets: written once from token streams, read by NeMo's data module and by held-out evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bielik_nemo.engine import cpu, forward
from bielik_nemo.errors import DataError

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel


@dataclass(frozen=True)
class HeldOut:
    """The held-out tokens on which every model of a run is measured: the same ones, in the same order, each time."""

    prefix: str  # of the dataset, without suffix
    seq_length: int
    tokens: int
    batch_size: int

    def loss(self, model: GPTModel, on_batch: Callable[[], None] = lambda: None) -> float:
        """Mean cross-entropy of a model in nats per token; the same on every rank."""
        return forward.held_out_loss(model, self.blocks(), self.batch_size, on_batch)

    def blocks(self) -> Tensor:
        """Token ids `[n, seq_length + 1]`."""
        return blocks(Path(self.prefix), self.seq_length, self.tokens)

    def batches(self) -> int:
        """Number of forward passes that `loss` takes, when the dataset is large enough."""
        return -(-max(self.tokens // self.seq_length, 1) // self.batch_size)


def write(prefix: Path, documents: Iterable[list[int]], vocab_size: int) -> int:
    """Write `<prefix>.bin` and `<prefix>.idx`, one Megatron document per list of token ids; return the token count.

    The index is written last, under its final name only when the data are complete.
    """
    cpu.enable()
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    partial = prefix.with_name(prefix.name + ".partial")
    tokens = 0
    try:
        builder = IndexedDatasetBuilder(f"{partial}.bin", dtype=DType.optimal_dtype(vocab_size))
        for ids in documents:
            builder.add_document(torch.tensor(ids, dtype=torch.int64), [len(ids)])
            tokens += len(ids)
        builder.finalize(f"{partial}.idx")
        for suffix in (".bin", ".idx"):
            os.replace(f"{partial}{suffix}", f"{prefix}{suffix}")
    finally:
        for suffix in (".bin", ".idx"):
            Path(f"{partial}{suffix}").unlink(missing_ok=True)
    return tokens


def blocks(prefix: Path, seq_length: int, tokens: int) -> Tensor:
    """The first tokens of a dataset as consecutive blocks `[n, seq_length + 1]` whose ends overlap by one token.

    Args:
        prefix: dataset path without suffix.
        seq_length: predictions per block.
        tokens: predictions wanted in all; fewer when the dataset is smaller.

    Raises:
        DataError: the dataset does not fill one block.
    """
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(prefix))
    pieces: list[np.ndarray] = []
    wanted = max(tokens // seq_length, 1) * seq_length + 1
    size = 0
    for i in range(len(dataset)):
        pieces.append(dataset[i])
        size += len(pieces[-1])
        if size >= wanted:
            break
    stream = torch.from_numpy(np.concatenate(pieces).astype(np.int64)) if pieces else torch.empty(0, dtype=torch.int64)
    count = min((len(stream) - 1) // seq_length, (wanted - 1) // seq_length)
    if count < 1:
        raise DataError(f"{prefix}: {len(stream)} tokens do not fill one block of data.seq_length={seq_length} + 1")
    return torch.stack([stream[i * seq_length : (i + 1) * seq_length + 1] for i in range(count)])
