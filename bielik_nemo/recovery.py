"""How much of a teacher's ability a student kept: recovery = student's score / teacher's, and how sure that is.

Both answered the same documents, so that what is hard for one is mostly hard for the other: intervals are of paired
scores, which is what makes them narrow. Where a score is a mean over documents they are the delta method's,

    var(s / t) = var(s_i - (s / t) t_i) / (n t^2),

where it is not (F1, BLEU) they come from drawing documents again and computing the metric on each draw. An interval
that has 1 inside says that nothing was shown to be lost: `within noise`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

FEWEST = 10
"""Documents below which a normal interval means nothing, so that there is none."""
LOST, NOISE, GAINED, UNKNOWN = "lost", "within noise", "gained", "unknown"


class Score(NamedTuple):
    """What a model scored: `low` and `high` bound it, or are None where there are too few documents to say."""

    value: float
    low: float | None = None
    high: float | None = None

    def plain(self) -> dict[str, float]:
        """As JSON has it: what is known."""
        return {key: value for key, value in self._asdict().items() if value is not None}


class Recovery(NamedTuple):
    """What share of the teacher's score a student has.

    Attributes:
        value: student / teacher; None where that means nothing.
        low: end of its interval; None where it has none.
        high: the other end.
        verdict: `lost`, `within noise`, `gained`, or `unknown`.
        reason: of `unknown`.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    verdict: str = UNKNOWN
    reason: str = ""

    def plain(self) -> dict[str, Any]:
        """As JSON has it: what is known, and a reason for what is not."""
        return {key: value for key, value in self._asdict().items() if value not in (None, "", UNKNOWN)}


def score(values: Sequence[float], confidence: float) -> Score:
    """Mean of a metric over documents, and its interval."""
    mean = float(np.mean(values))
    if len(values) < FEWEST:
        return Score(mean)
    reach = _z(confidence) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return Score(mean, mean - reach, mean + reach)


def of_means(student: Sequence[float], teacher: Sequence[float], confidence: float) -> Recovery:
    """Recovery where the score is the mean over documents.

    Args:
        student: its metric on each document.
        teacher: the teacher's, on the same documents in the same order.
        confidence: of the interval, such as 0.95.
    """
    s, t = (np.asarray(each, dtype=np.float64) for each in (student, teacher))
    if len(s) != len(t):
        raise ValueError(f"student and teacher: got {len(s)} and {len(t)} documents, expected the same ones")
    if refused := _undefined(t.mean(), len(t)):
        return refused
    ratio = s.mean() / t.mean()
    error = float(np.std(s - ratio * t, ddof=1)) / (len(s) ** 0.5 * t.mean())
    return _within(float(ratio), error, confidence)


def resampled(
    items: Mapping[str, Sequence[Any]], aggregate: Callable[[list[Any]], float], draws: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Scores of every model on documents drawn again: `[draws]` each, the same documents for all models.

    Args:
        items: what the metric keeps of each document, by model; all of the same documents in the same order.
        aggregate: the metric's own way from these to its score.
        draws: how often, with as many documents as there are.
        seed: of the draws.
    """
    (count,) = {len(each) for each in items.values()}
    rng = np.random.default_rng(seed)
    found = {name: np.empty(draws) for name in items}
    for draw in range(draws):
        chosen = rng.integers(count, size=count)
        for name, each in items.items():
            found[name][draw] = aggregate([each[i] for i in chosen])
    return found


def score_of_draws(value: float, draws: np.ndarray, count: int, confidence: float) -> Score:
    """A score of `count` documents with the interval of what `resampled` found."""
    return Score(value, *_percentiles(draws, confidence)) if count >= FEWEST else Score(value)


def of_draws(
    student: float,
    teacher: float,
    student_draws: np.ndarray,
    teacher_draws: np.ndarray,
    count: int,
    confidence: float,
) -> Recovery:
    """Recovery where the score is no mean: of both scores on `count` documents and on what `resampled` drew."""
    if refused := _undefined(teacher, count):
        return refused
    if not (teacher_draws > 0).all() or not np.isfinite(student_draws).all():
        return Recovery(student / teacher, reason="on some draws the teacher scores 0, or one has no score")
    low, high = _percentiles(student_draws / teacher_draws, confidence)
    return Recovery(student / teacher, low, high, _verdict(low, high))


def mean(recoveries: Sequence[Recovery], confidence: float) -> Recovery:
    """Mean recovery over tasks, which are of different documents and so independent; unknown ones are left out.

    An interval counts as the one of a normal distribution with its width.
    """
    known = [each for each in recoveries if each.low is not None and each.high is not None]
    if not known:
        return Recovery(None, reason="no task whose recovery is known")
    value = float(np.mean([each.value for each in known]))
    halves = [(each.high - each.low) / 2 for each in known]
    error = float(np.sqrt(np.sum(np.square(halves)))) / len(known) / _z(confidence)
    return _within(value, error, confidence)


def above_chance(value: float, chance: float) -> float:
    """A score on the scale of the Open PL LLM Leaderboard: 0 is what guessing gives, 1 is all right."""
    return (value - chance) / (1 - chance)


def _undefined(teacher: float, count: int) -> Recovery | None:
    if teacher <= 0:
        return Recovery(None, reason=f"the teacher scores {teacher:g}, which nothing is a share of")
    return Recovery(None, reason=f"{count} documents, fewer than {FEWEST}") if count < FEWEST else None


def _within(value: float, error: float, confidence: float) -> Recovery:
    low, high = value - _z(confidence) * error, value + _z(confidence) * error
    return Recovery(value, low, high, _verdict(low, high))


def _verdict(low: float, high: float) -> str:
    return LOST if high < 1 else GAINED if low > 1 else NOISE


def _percentiles(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _z(confidence: float) -> float:
    """Standard errors to either side of an interval."""
    return NormalDist().inv_cdf((1 + confidence) / 2)
