"""BLEU and chrF of documents that are drawn again and again: from what sacreBLEU counts in each of them, once.

The harness's own aggregations read all texts anew for every draw: a third of a second for the thousand sentences of
FLORES, of which its 46 translations with a thousand draws would make hours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lm_eval.api import metrics
from sacrebleu.metrics import BLEU, CHRF

COUNTERS = {
    metrics.bleu: lambda: BLEU(),
    metrics.chrf: lambda: CHRF(),
    metrics.chrfpp: lambda: CHRF(word_order=2),
}
"""What counts, by the harness's aggregation."""

Aggregate = Callable[[list[Any]], float]


def counted(aggregate: Aggregate, values: dict[str, Sequence[Any]]) -> tuple[dict[str, Sequence[Any]], Aggregate]:
    """Values of documents by model, and the way to a score: counts and their sum where that gives the same score.

    Args:
        aggregate: the harness's own way.
        values: what a metric keeps of each document; of translations `(reference, translation)`.
    """
    if aggregate not in COUNTERS:
        return values, aggregate
    counter = COUNTERS[aggregate]()

    def counts(items: Sequence[Any]) -> np.ndarray:
        references, translations = metrics._sacreformat(*zip(*items, strict=True))
        return np.array(counter._extract_corpus_statistics(translations, references))

    def of_counts(rows: list[Any]) -> float:
        return float(counter._compute_score_from_stats(np.sum(rows, axis=0).tolist()).score)

    return {name: counts(items) for name, items in values.items()}, of_counts
