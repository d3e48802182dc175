"""Sequences of conversations: each once, none over its capacity, few of them."""

from __future__ import annotations

import numpy as np
import pytest

from bielik_nemo.data.packing import alone, pack


def rooms(packs, lengths: np.ndarray, capacity: int) -> list[int]:
    return [capacity - int(lengths[items].sum()) for items in packs]


def test_the_fullest_sequence_that_has_room_is_taken():
    """Capacity 10, longest first: 7 | 6 | 3 into the 7 (room 3, not 4) | 2 into the 6 | 2 into the 6: full, both."""
    lengths = np.array([2, 6, 3, 7, 2])
    packs = pack(lengths, 10)
    assert sorted(sorted(lengths[items].tolist()) for items in packs) == [[2, 2, 6], [3, 7]]


def test_every_item_is_there_once_and_no_sequence_is_over_full():
    lengths = np.random.default_rng(0).integers(1, 257, 5000)
    packs = pack(lengths, 256)
    assert sorted(packs.items.tolist()) == list(range(5000))
    assert min(rooms(packs, lengths, 256)) >= 0
    fewest = -(-int(lengths.sum()) // 256)
    assert len(packs) <= 11 / 9 * fewest + 1


def test_short_conversations_fill_nearly_everything():
    """Mean of a quarter of the capacity, as on real sets: over 99 % of the positions."""
    lengths = np.random.default_rng(1).geometric(1 / 256, 20000).clip(2, 1024)
    packs = pack(lengths, 1024)
    assert lengths.sum() / (len(packs) * 1024) > 0.99


def test_the_seed_decides_the_order_and_nothing_else_does():
    lengths = np.random.default_rng(2).integers(1, 65, 300)
    first, again, other = (pack(lengths, 64, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.items, again.items) and np.array_equal(first.starts, again.starts)
    assert not np.array_equal(first.items, other.items)


def test_items_alone():
    packs = alone(3)
    assert [items.tolist() for items in packs] == [[0], [1], [2]]


def test_nothing_makes_no_sequences():
    assert len(pack(np.array([], dtype=np.int64), 8)) == 0


@pytest.mark.parametrize("wrong", [0, 9])
def test_what_cannot_be_packed(wrong: int):
    with pytest.raises(ValueError, match=r"lengths: found .*, allowed: 1 to 8"):
        pack(np.array([4, wrong]), 8)
