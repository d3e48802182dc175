"""Shares of the training samples, and that Megatron's blended dataset keeps them at every moment of a run."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from bielik_nemo import ui
from bielik_nemo.config import Config
from bielik_nemo.config_prune import TextSource
from bielik_nemo.data import mixture
from bielik_nemo.errors import DataError


def sources(*pairs: tuple[str, float | None]) -> list[TextSource]:
    return [TextSource(language=language, weight=weight) for language, weight in pairs]


def run(tmp_path: Path, tokens: list[int], found: list[TextSource]) -> Config:
    (tmp_path / "data").mkdir()
    rows = [{"name": f"{count}.txt", "tokens": count} for count in tokens]
    (tmp_path / "data" / "summary.json").write_text(json.dumps({"sources": rows}))
    config = Config()
    config.data.sources = found
    return config


def test_without_weights_by_size():
    assert mixture.shares(sources(("", None), ("", None)), {}, [30, 10]) == [Fraction(3, 4), Fraction(1, 4)]


def test_weights_of_sources_are_literal():
    assert mixture.shares(sources(("pl", 1), ("en", 3)), {}, [30, 10]) == [Fraction(1, 4), Fraction(3, 4)]


def test_weights_of_sources_count_within_their_language():
    """Polish has 7 of 10, by weights 2:1 in two sources; English 3 of 10, by its sizes 10:20. Not 70 and 30 of more."""
    found = mixture.shares(
        sources(("pl", 2), ("en", None), ("pl", 1), ("en", None)), {"pl": 70.0, "en": 30.0}, [5, 10, 5000, 20]
    )
    assert found == [Fraction(14, 30), Fraction(1, 10), Fraction(7, 30), Fraction(2, 10)]


def test_samples_tokens_and_epochs(tmp_path: Path):
    """Of 7 samples at 3:1 five and two (5.25 and 1.75), of 32 tokens: 160 of 40 are four epochs and 64 of 640
    are a tenth."""
    config = run(tmp_path, [40, 640], sources(("pl", 3), ("", 1)))
    first, second = mixture.parts(config.data, tmp_path, 7, 32)
    assert (first.samples, first.tokens, first.epochs, first.share) == (5, 160, 4.0, 0.75)
    assert (second.samples, second.tokens, second.epochs, second.share) == (2, 64, 0.1, 0.25)
    paths = [str(tmp_path / "data" / "train" / name) for name in ("000", "001")]
    assert mixture.paths([first, second]) == ["5", paths[0], "2", paths[1]]
    assert mixture.paths([first]) == [paths[0]]
    row = {"name": "40.txt", "language": "pl", "share": 0.75, "samples": 5, "tokens": 160, "epochs": 4.0}
    assert mixture.record([first]) == {"sources": [row]}


def test_a_source_too_small_for_a_sample(tmp_path: Path):
    """By size it is left out; with a weight of its own that is an error."""
    config = run(tmp_path, [1000, 1], sources(("", None), ("", None)))
    assert [part.samples for part in mixture.parts(config.data, tmp_path, 10, 32)] == [10, 0]
    assert mixture.paths(mixture.parts(config.data, tmp_path, 10, 32)) == [str(tmp_path / "data" / "train" / "000")]
    config.data.sources = sources(("", 1000), ("", 1))
    with pytest.raises(DataError, match=r"data\.sources\[1\]\.weight: found 1, which gives none of 10 samples"):
        mixture.parts(config.data, tmp_path, 10, 32)


def test_a_source_repeated_more_than_four_times_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ui, "_terminal", said := io.StringIO())
    config = run(tmp_path, [40, 39], sources(("", 1), ("", 1)))
    mixture.announce(mixture.parts(config.data, tmp_path, 10, 32))
    assert said.getvalue().splitlines() == [
        "   50.0% 40.txt: 160 tokens, 4.00 epochs",
        "   50.0% 39.txt: 160 tokens, 4.10 epochs",
        "  warning: 39.txt is repeated 4.1 times; more than 4 teach little",
    ]


def test_megatron_draws_exactly_these_samples_at_every_moment():
    """Random mixes, many of them with sources of a few samples: the counts at the end are exact, and before it no
    source is more than one sample ahead of its share."""
    from megatron.core.datasets import helpers
    from megatron.core.datasets.utils import normalize

    draw = np.random.default_rng(0)
    for _ in range(200):
        counts = draw.integers(1, draw.choice([4, 2000]), size=draw.integers(2, 9)).tolist()
        size = sum(counts)
        source, sample = np.zeros(size, dtype=np.int16), np.zeros(size, dtype=np.int64)
        helpers.build_blending_indices(source, sample, normalize(counts), len(counts), size, False)
        for index, count in enumerate(counts):
            drawn = np.cumsum(source == index)
            assert drawn[-1] == count
            assert (drawn <= count / size * np.arange(size) + 1 + 1e-9).all()
            assert (sample[source == index] == np.arange(count)).all()
