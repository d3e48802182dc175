"""Shares, order and packing of a blend, worked out by hand."""

import numpy as np
import pytest

from bielik_nemo.data import blend


@pytest.mark.parametrize(
    ("weights", "samples", "expected"),
    [
        ([2, 1], 7, [5, 2]),  # quotas 4.67 and 2.33: 4 + 2, the one left goes to the larger remainder, 0.67
        ([1, 1, 1], 7, [3, 2, 2]),  # 2.33 each: the first of equal remainders
        ([1, 1, 1], 8, [3, 3, 2]),
        ([0.7, 0.2, 0.1], 10, [7, 2, 1]),
        ([1, 1000], 8, [0, 8]),  # 0.008 and 7.992
        ([5], 3, [3]),
        ([], 3, []),
    ],
)
def test_shares_are_largest_remainders(weights, samples, expected):
    assert blend.shares(weights, samples) == expected


def test_shares_do_not_suffer_from_rounding():
    """0.1 + 0.2 is not 0.3 in binary, and ten thirds of three are not ten; exact fractions sum to the whole."""
    for weights in ([0.1, 0.2, 0.3], [1 / 3] * 10, [1e-9, 1e9], [3.3] * 7):
        for samples in (1, 10, 1000, 999_983):
            assert sum(blend.shares(weights, samples)) == samples


def test_shares_only_depend_on_the_ratio():
    assert blend.shares([20, 10], 7) == blend.shares([0.5, 0.25], 7) == [5, 2]


def test_order_is_mixed_the_same_for_a_seed_and_another_for_another():
    first = blend.order([50, 30], 1)
    assert (first.count(0), first.count(1)) == (50, 30)
    assert first == blend.order([50, 30], 1) != blend.order([50, 30], 2)
    assert first != sorted(first)
    assert 5 < sum(first[:40]) < 25  # 15 expected, standard deviation 2.2


def documents(read: list[int], *lengths: int):
    """Documents that count on: [0, 1, 2], [3, 4], ...; notes each that is asked for."""
    start = 0
    for index, length in enumerate(lengths):
        read.append(index)
        yield list(range(start, start + length))
        start += length


def test_samples_follow_one_another_across_documents():
    """Documents of 3, 2 and 5 tokens; two samples of 4 need 8 tokens, so all three are read, and no fourth."""
    read, full = [], []
    packed = blend.pack(documents(read, 3, 2, 5, 9), 4, 2, lambda: full.append(len(read)))
    assert packed.samples.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert packed.samples.dtype == np.int64
    assert (packed.documents, packed.tokens) == (3, 10) and read == [0, 1, 2]
    assert full == [2, 3]  # the first sample is full after the second document


def test_one_long_document_is_enough():
    """12 tokens are three samples of 4, of which two are wanted: nothing else is read."""
    read, full = [], []
    packed = blend.pack(documents(read, 12, 1), 4, 2, lambda: full.append(1))
    assert packed.samples.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert read == [0] and full == [1, 1]


def test_samples_that_are_filled_to_the_last_token():
    read: list[int] = []
    packed = blend.pack(documents(read, 4, 4, 1), 4, 2)
    assert packed.samples.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]] and read == [0, 1]


def test_too_little_text_gives_fewer_samples():
    """11 tokens: two samples of 4 out of five; no token is made up."""
    packed = blend.pack(documents([], 3, 8), 4, 5)
    assert packed.samples.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (packed.documents, packed.tokens) == (2, 11)
    nothing = blend.pack([], 4, 5)
    assert nothing.samples.shape == (0, 4) and (nothing.documents, nothing.tokens) == (0, 0)


def test_nothing_is_read_for_no_samples():
    read: list[int] = []
    assert blend.pack(documents(read, 4), 4, 0).samples.shape == (0, 4)
    assert read == []
