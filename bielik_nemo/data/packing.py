"""Which conversations share a sequence: best fit, the longest first.

Every item goes into the fullest sequence that still has room for it, else it opens a new one. Longest first, this
needs at most 11/9 of the fewest sequences possible (Johnson 1974), and on real conversations hardly more than their
tokens fill.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packs:
    """Sequences of items: sequence i holds `items[starts[i] : starts[i + 1]]`."""

    items: np.ndarray  # int64 [n], each item once
    starts: np.ndarray  # int64 [sequences + 1]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.items[self.starts[index] : self.starts[index + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))


def alone(count: int) -> Packs:
    """Every item in a sequence of its own."""
    return Packs(np.arange(count), np.arange(count + 1))


def pack(lengths: np.ndarray, capacity: int, seed: int = 0) -> Packs:
    """Put items into sequences of at most `capacity` tokens.

    Args:
        lengths: tokens of each item `[n]`, 1 to `capacity`.
        capacity: tokens of a sequence.
        seed: of the order among items of one length, and of the sequences.

    Raises:
        ValueError: an item is empty or longer than a sequence.
    """
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
        raise ValueError(f"lengths: found {lengths.min()} to {lengths.max()}, allowed: 1 to {capacity}")
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(lengths))
    sequences: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # numbers of the sequences that have room for exactly so many tokens
    rooms = 0  # bit r is set where by_room[r] is not empty
    for item in shuffled[np.argsort(-lengths[shuffled], kind="stable")].tolist():
        length = int(lengths[item])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, number = capacity, len(sequences)
            sequences.append([])
        sequences[number].append(item)
        left = room - length
        if left:
            by_room.setdefault(left, []).append(number)
            rooms |= 1 << left
    chosen = [sequences[i] for i in random.permutation(len(sequences))]
    starts = np.cumsum([0, *map(len, chosen)])
    return Packs(np.fromiter((item for items in chosen for item in items), np.int64, starts[-1]), starts)
