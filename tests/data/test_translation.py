"""Scores from counts are those of the harness, on all sentences and on any drawn from them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason='needs lm-evaluation-harness: pip install "bielik_nemo[measure]"')

from lm_eval.api import metrics
from lm_eval.api.registry import get_aggregation

from bielik_nemo.data import translation

PAIRS = [
    ("Kot siedzi na dachu.", "Kot siedzi na dachu."),
    ("Ala ma kota i psa, a Jan nie ma nic.", "Ala ma psa i kota, ale Jan nic nie ma."),
    ("Dzisiaj pada deszcz.", "Jutro będzie padał śnieg z deszczem."),
    ("Nie ma za co!", ""),
    (["Dzień dobry, jak się pan ma?"], ["Dzień dobry, jak się masz?"]),
]


@pytest.mark.parametrize("aggregate", [metrics.bleu, metrics.chrf, metrics.chrfpp])
def test_the_same_scores(aggregate):
    """The last pair as JSON brings it back where a task keeps lists."""
    assert aggregate in map(get_aggregation, ("bleu", "chrf", "chrf++"))
    pairs = PAIRS[:-1]
    items, of_counts = translation.counted(aggregate, {"a": pairs, "b": [PAIRS[-1]]})
    assert of_counts(list(items["a"])) == pytest.approx(aggregate(pairs), abs=1e-9)
    assert of_counts(list(items["b"])) == pytest.approx(aggregate([PAIRS[-1]]), abs=1e-9)
    chosen = np.random.default_rng(0).integers(len(pairs), size=6)
    drawn = of_counts([items["a"][i] for i in chosen])
    assert drawn == pytest.approx(aggregate([pairs[i] for i in chosen]), abs=1e-9)


def test_other_metrics_are_left_as_they_are():
    values = {"a": [1, 2]}
    assert translation.counted(metrics.mean, values) == (values, metrics.mean)
