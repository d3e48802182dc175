"""The mix of sources that a training run draws its samples from: how many of each, and how often each is repeated.

Shares are literal: of the samples, a language has its weight's part and a source its weight's part of its language (of
everything, without language weights). Sources without weights share by their tokens, so that all are repeated equally.
Whole samples are given out by largest remainders (see blend.py) and handed to Megatron as the weights of its blended
dataset. Its greedy order then has exactly these counts and is never more than one sample ahead of a share: a source
gets another sample only when its deficit w_i t - n_i is the largest and so not negative: n_i <= w_i (t - 1) + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from bielik_nemo import artifacts, ui
from bielik_nemo.config import Data
from bielik_nemo.config_prune import TextSource
from bielik_nemo.data import blend
from bielik_nemo.errors import DataError

NAME = "train/{:03d}"
"""Training set of a source, without suffix, by its number in `data.sources`."""
HELD_OUT_NAME = "held_out/sources/{:03d}"
"""The same of its held-out set, where a language has several sources."""
SUMMARY, FILE = "summary.json", "blend.json"
REPEATED = 4
"""Epochs up to which repeated text is nearly as good as fresh text (arXiv 2305.16264)."""


@dataclass(frozen=True)
class Part:
    """What a run takes of one source.

    Attributes:
        name: file or directory it was read from.
        language: of its text; empty where none is named.
        share: of all samples.
        samples: of the run.
        tokens: in these samples.
        epochs: tokens over those that the source has.
        prefix: dataset path without suffix.
    """

    name: str
    language: str
    share: float
    samples: int
    tokens: int
    epochs: float
    prefix: str


def shares(
    sources: Sequence[TextSource], language_weights: Mapping[str, float], tokens: Sequence[int]
) -> list[Fraction]:
    """Share of each source, 1 in all.

    Args:
        sources: of each language all have a weight or none.
        language_weights: for every language of the sources; empty: languages do not count.
        tokens: of each source.
    """
    groups: dict[str, list[int]] = {}
    for index, source in enumerate(sources):
        groups.setdefault(source.language if language_weights else "", []).append(index)
    found = [Fraction()] * len(sources)
    for language, members in groups.items():
        part = Fraction(language_weights[language]) if language_weights else Fraction(1)
        sizes = {i: Fraction(tokens[i] if sources[i].weight is None else sources[i].weight) for i in members}
        for index, size in sizes.items():
            found[index] = part * size / sum(sizes.values())
    return [share / sum(found) for share in found]


def parts(data: Data, run_dir: Path, samples: int, seq_length: int) -> list[Part]:
    """What a run of so many samples takes of each source, in the order of `data.sources`.

    Args:
        data: its sources and weights.
        run_dir: of a run whose stage `data` has finished.
        samples: that are drawn.
        seq_length: tokens of each.

    Raises:
        DataError: a source that has a weight gets no sample.
    """
    sources, rows = data.sources, artifacts.read_json(run_dir / "data" / SUMMARY)["sources"]
    exact = shares(sources, data.language_weights, [row["tokens"] for row in rows])
    found = []
    for index, (source, row, share) in enumerate(zip(sources, rows, exact, strict=True)):
        count = blend.shares(exact, samples)[index]
        if not count and source.weight is not None:
            raise DataError(
                f"data.sources[{index}].weight: found {source.weight:g}, which gives none of {samples:,} samples; "
                "allowed: enough for one"
            )
        tokens = count * seq_length
        prefix = str(run_dir / "data" / NAME.format(index))
        part = Part(row["name"], source.language, float(share), count, tokens, tokens / row["tokens"], prefix)
        found.append(part)
    return found


def paths(found: Sequence[Part]) -> list[str]:
    """Weights and paths as Megatron reads them; the path alone where there is one."""
    drawn = [part for part in found if part.samples]
    if len(drawn) == 1:
        return [drawn[0].prefix]
    return [word for part in drawn for word in (str(part.samples), part.prefix)]


def drawn(data: Data, run_dir: str, samples: int) -> list[str]:
    """`paths` of what a run of so many samples takes."""
    return paths(parts(data, Path(run_dir), samples, data.seq_length))


def announce(found: Sequence[Part]) -> None:
    """Tell the mix, where there is one, and warn of sources that are repeated often."""
    for part in found:
        if len(found) > 1:
            ui.say(f"  {part.share:6.1%} {part.name}: {part.tokens:,} tokens, {part.epochs:.2f} epochs")
        if part.epochs > REPEATED:
            ui.say(f"  warning: {part.name} is repeated {part.epochs:.1f} times; more than {REPEATED} teach little")


def record(found: Sequence[Part]) -> dict[str, list[dict[str, Any]]]:
    """Content of `blend.json`."""
    rows = [asdict(part) for part in found]
    return {"sources": [{key: row[key] for key in row if key != "prefix"} for row in rows]}
