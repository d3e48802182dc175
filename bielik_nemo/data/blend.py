"""A blend of several texts in samples of one length: how many of each, in which order, cut from which tokens.

Shares are largest remainders (Hamilton's method): floor(samples * weight / sum of weights) each, and what is left goes
to the largest fractional parts, the first of equal ones. Pure: texts come in as token ids.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Packed:
    """What was cut from one text.

    Attributes:
        samples: token ids `[n, seq_length]`, int64.
        documents: how many were read for them; the last one may have been needed in part.
        tokens: of these documents.
    """

    samples: np.ndarray
    documents: int
    tokens: int


def shares(weights: Sequence[float], samples: int) -> list[int]:
    """Samples of each source, `samples` in all, in proportion to positive weights."""
    exact = [Fraction(weight) for weight in weights]
    quotas = [samples * weight / sum(exact) for weight in exact]
    found = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: found[i] - quotas[i])
    for i in by_remainder[: samples - sum(found)]:
        found[i] += 1
    return found


def order(counts: Sequence[int], seed: int) -> list[int]:
    """Which source each sample of the blend comes from, source `i` `counts[i]` times; the same for the same seed."""
    sources = [source for source, count in enumerate(counts) for _ in range(count)]
    random.Random(seed).shuffle(sources)
    return sources


def pack(
    documents: Iterable[Sequence[int]], seq_length: int, count: int, on_sample: Callable[[], None] = lambda: None
) -> Packed:
    """The first `count` samples of the documents' tokens, one after another; fewer when there are too few tokens.

    No document is asked for once the samples are full. `on_sample` is called for each that becomes full.
    """
    import numpy as np

    pieces, size, full = [np.empty(0, dtype=np.int64)], 0, 0
    remaining = iter(documents)
    while full < count and (ids := next(remaining, None)) is not None:
        pieces.append(np.asarray(ids, dtype=np.int64))
        size += len(ids)
        while full < min(size // seq_length, count):
            full += 1
            on_sample()
    samples = np.concatenate(pieces)[: full * seq_length].reshape(full, seq_length)
    return Packed(samples, documents=len(pieces) - 1, tokens=size)
