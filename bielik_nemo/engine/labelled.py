"""Conversations as Megatron datasets: of every token its id, and whether the model is trained to say it.

Both stand in one number, 2 * id + trained, so that a conversation is one document of one dataset.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bielik_nemo.engine import cpu, datasets


class Labelled(NamedTuple):
    """A conversation in tokens."""

    ids: np.ndarray  # int64 [n]
    trained: np.ndarray  # bool [n]: a token that the model is to say, given those before it


@contextlib.contextmanager
def writer(prefix: Path, vocab_size: int) -> Iterator[Callable[[Sequence[int], Sequence[bool]], None]]:
    """Yield what adds the ids and marks of one conversation to `<prefix>.bin`; see `datasets.writer`."""
    with datasets.writer(prefix, 2 * vocab_size) as add:
        yield lambda ids, trained: add([2 * token + bool(mark) for token, mark in zip(ids, trained, strict=True)])


class Conversations:
    """The conversations that `writer` left, in order."""

    def __init__(self, prefix: Path):
        cpu.enable()
        from megatron.core.datasets.indexed_dataset import IndexedDataset

        self.dataset = IndexedDataset(str(prefix))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Labelled:
        numbers = self.dataset[index].astype(np.int64)
        return Labelled(numbers >> 1, (numbers & 1).astype(bool))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each conversation, int64 `[n]`."""
        return np.asarray(self.dataset.sequence_lengths, dtype=np.int64)
