"""Megatron indexed datasets: written once from token streams, read by NeMo's data module and by held-out evaluation."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

    directory: str  # one dataset for each language, by its name
    seq_length: int
    tokens: int
    batch_size: int

    def loss(self, model: GPTModel, on_batch: Callable[[], None] = lambda: None) -> float:
        """Mean cross-entropy of a model in nats per token; the same on every rank."""
        return self.measure(model, on_batch)[0]

    def losses(self, model: GPTModel, on_batch: Callable[[], None] = lambda: None) -> dict[str, float]:
        """The same by language."""
        return self.measure(model, on_batch)[1]

    def record(self, model: GPTModel) -> dict[str, Any]:
        """What is to be written down of a model: `held_out_loss`, and by language where there are several."""
        loss, losses = self.measure(model)
        return {"held_out_loss": loss} | ({"held_out_loss_by_language": losses} if len(losses) > 1 else {})

    def measure(self, model: GPTModel, on_batch: Callable[[], None] = lambda: None) -> tuple[float, dict[str, float]]:
        """Mean over all tokens, and by language, from one pass; see the function of this name."""
        return measure(model, self.blocks(), self.batch_size, on_batch)

    def blocks(self) -> dict[str, Tensor]:
        """Token ids `[n, seq_length + 1]` by language; see `by_language`."""
        return by_language(Path(self.directory), self.seq_length, self.tokens)

    def batches(self) -> int:
        """Number of forward passes that measuring takes."""
        return sum(-(-len(part) // self.batch_size) for part in self.blocks().values())


def measure(
    model: GPTModel, parts: Mapping[str, Tensor], batch_size: int, on_batch: Callable[[], None] = lambda: None
) -> tuple[float, dict[str, float]]:
    """Mean cross-entropy in nats per predicted token, over all and by part, the same on every rank.

    Args:
        model: this rank's part.
        parts: token ids `[n, s + 1]` by name, of one s.
        batch_size: blocks of a forward pass.
        on_batch: called once a batch is through.
    """
    losses = {name: forward.held_out_loss(model, part, batch_size, on_batch) for name, part in parts.items()}
    total = sum(map(len, parts.values()))
    return sum(losses[name] * (len(part) / total) for name, part in parts.items()), losses


@contextlib.contextmanager
def writer(prefix: Path, vocab_size: int) -> Iterator[Callable[[list[int]], None]]:
    """Yield what adds one Megatron document, a list of token ids, to `<prefix>.bin`; `<prefix>.idx` ends the block.

    Both files get their final names, the index last, only when the data are complete.
    """
    cpu.enable()
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    partial = prefix.with_name(prefix.name + ".partial")
    try:
        builder = IndexedDatasetBuilder(f"{partial}.bin", dtype=DType.optimal_dtype(vocab_size))
        yield lambda ids: builder.add_document(np.array(ids, dtype=builder.dtype), [len(ids)])
        builder.finalize(f"{partial}.idx")
        for suffix in (".bin", ".idx"):
            os.replace(f"{partial}{suffix}", f"{prefix}{suffix}")
    finally:
        for suffix in (".bin", ".idx"):
            Path(f"{partial}{suffix}").unlink(missing_ok=True)


def write(prefix: Path, documents: Iterable[list[int]], vocab_size: int) -> int:
    """Write a whole dataset, one document per list of token ids; return the token count."""
    tokens = 0
    with writer(prefix, vocab_size) as add:
        for ids in documents:
            add(ids)
            tokens += len(ids)
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
    pieces: list[np.ndarray] = []
    wanted = max(tokens // seq_length, 1) * seq_length + 1
    size = 0
    for ids in documents(prefix):
        pieces.append(ids)
        size += len(ids)
        if size >= wanted:
            break
    stream = torch.from_numpy(np.concatenate(pieces)) if pieces else torch.empty(0, dtype=torch.int64)
    count = min((len(stream) - 1) // seq_length, (wanted - 1) // seq_length)
    if count < 1:
        raise DataError(f"{prefix}: {len(stream)} tokens do not fill one block of data.seq_length={seq_length} + 1")
    return torch.stack([stream[i * seq_length : (i + 1) * seq_length + 1] for i in range(count)])


def prefixes(directory: Path) -> dict[str, Path]:
    """The datasets in a directory: paths without suffix by name, sorted.

    Raises:
        DataError: there is none.
    """
    found = {path.stem: path.with_suffix("") for path in sorted(directory.glob("*.idx"))}
    if not found:
        raise DataError(f"{directory}: no datasets in this directory")
    return found


def by_language(directory: Path, seq_length: int, tokens: int) -> dict[str, Tensor]:
    """`blocks` of every dataset in a directory, which share the wanted tokens equally; by the datasets' names."""
    found = prefixes(directory)
    return {name: blocks(prefix, seq_length, tokens // len(found)) for name, prefix in found.items()}


def documents(prefix: Path) -> Iterator[np.ndarray]:
    """The documents of a dataset, as token ids (int64), in order."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(prefix))
    for i in range(len(dataset)):
        # A copy: what Megatron gives out is a view of a mapped file, which goes with the dataset.
        yield dataset[i].astype(np.int64)
