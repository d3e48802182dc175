"""Recovery and its intervals: by hand, against a bootstrap, and where a ratio means nothing."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from sklearn.metrics import f1_score

from bielik_nemo import recovery
from bielik_nemo.recovery import Recovery

Z = NormalDist().inv_cdf(0.975)


def answers(seed: int, count: int, teacher: float, kept: float, found: float) -> tuple[np.ndarray, np.ndarray]:
    """0 and 1 of a student and its teacher: of what the teacher knows the student knows `kept`, of the rest `found`."""
    rng = np.random.default_rng(seed)
    t = rng.random(count) < teacher
    s = np.where(t, rng.random(count) < kept, rng.random(count) < found)
    return s.astype(float), t.astype(float)


def f1(pairs: list) -> float:
    gold, found = zip(*pairs, strict=True)
    return float(f1_score(gold, found))


def test_by_hand():
    """Ten documents: teacher right on 8, student on 6 of these; 6/8 = 0.75, and s - 0.75 t is

    0.25 six times, -0.75 twice, 0 twice: squares 6/16 + 2 * 9/16 = 1.5, sum 0, so that the variance is 1.5 / 9 and the
    error sqrt(1.5 / 9 / 10) / 0.8 = 0.1614.
    """
    teacher, student = [1.0] * 8 + [0.0] * 2, [1.0] * 6 + [0.0] * 4
    found = recovery.of_means(student, teacher, 0.95)
    error = math.sqrt(1.5 / 90) / 0.8
    assert found == pytest.approx((0.75, 0.75 - Z * error, 0.75 + Z * error, "within noise", ""))
    assert recovery.score(teacher, 0.95) == pytest.approx(
        (0.8, 0.8 - Z * math.sqrt(1.6 / 90), 0.8 + Z * math.sqrt(1.6 / 90))
    )


@pytest.mark.parametrize(("kept", "found"), [(0.95, 0.2), (0.8, 0.1), (0.6, 0.4)])
def test_the_analytic_interval_is_that_of_a_bootstrap(kept, found):
    """2,000 documents, 4,000 draws: both ends within a tenth of the interval's width."""
    student, teacher = answers(3, 2000, 0.7, kept, found)
    analytic = recovery.of_means(student, teacher, 0.95)
    draws = recovery.resampled({"s": student, "t": teacher}, np.mean, 4000)
    drawn = recovery.of_draws(student.mean(), teacher.mean(), draws["s"], draws["t"], 2000, 0.95)
    width = analytic.high - analytic.low
    assert drawn.value == analytic.value
    assert drawn[1:3] == pytest.approx(analytic[1:3], abs=0.1 * width)
    scored = recovery.score_of_draws(student.mean(), draws["s"], 2000, 0.95)
    plain = recovery.score(student, 0.95)
    assert scored[1:] == pytest.approx(plain[1:], abs=0.1 * (plain.high - plain.low))


def test_pairs_are_what_makes_it_narrow():
    """The same answers of the student on other documents would be more than twice as uncertain."""
    student, teacher = answers(3, 2000, 0.7, 0.95, 0.1)
    paired = recovery.of_means(student, teacher, 0.95)
    apart = recovery.of_means(np.random.default_rng(0).permutation(student), teacher, 0.95)
    assert apart.high - apart.low > 2 * (paired.high - paired.low)


@pytest.mark.parametrize("metric", ["mean", "f1"])
def test_intervals_hold_as_often_as_they_say(metric):
    """The true recovery is inside 90 % of the 90 % intervals of 200 samples of 300 documents, give or take 3 errors.

    Of means: (0.6 * 0.9 + 0.4 * 0.1) / 0.6 = 29/30. Of F1, with gold always 1, recall r gives 2r / (1 + r): teacher
    1.2 / 1.6 = 0.75, student 1.16 / 1.58.
    """
    truth = {"mean": 29 / 30, "f1": 1.16 / 1.58 / 0.75}[metric]
    inside = 0
    for seed in range(200):
        student, teacher = answers(seed, 300, 0.6, 0.9, 0.1)
        if metric == "mean":
            found = recovery.of_means(student, teacher, 0.9)
        else:  # F1 of recall alone is a function of the mean, which is quicker than to count again
            draws = recovery.resampled({"s": student, "t": teacher}, _f1_of_recall, 200, seed)
            values = _f1_of_recall(student), _f1_of_recall(teacher)
            found = recovery.of_draws(*values, draws["s"], draws["t"], 300, 0.9)
        inside += found.low <= truth <= found.high
    assert abs(inside / 200 - 0.9) < 3 * math.sqrt(0.9 * 0.1 / 200)


def _f1_of_recall(right) -> float:
    recall = float(np.mean(right))
    return 2 * recall / (1 + recall)


def test_a_metric_that_is_no_mean_goes_through_its_own_aggregation():
    """The student finds 3 of 4 positives and one that is none: F1 = 6 / 8; the teacher all 4: 1."""
    gold = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0] * 6
    items = {
        "teacher": list(zip(gold, gold, strict=True)),
        "student": list(zip(gold, [1, 1, 1, 0, 1, 0, 0, 0, 0, 0] * 6, strict=True)),
    }
    draws = recovery.resampled(items, f1, 100)
    found = recovery.of_draws(f1(items["student"]), 1.0, draws["student"], draws["teacher"], 60, 0.95)
    assert found.value == pytest.approx(0.75)
    assert found.low < 0.75 < found.high < 1 and found.verdict == "lost"


def test_verdicts():
    """The same answers are a recovery of 100 %, as is what differs by chance; a tenth of 2,000 is lost, or gained."""
    same, _ = answers(0, 500, 0.5, 1, 0)
    assert recovery.of_means(same, same, 0.95) == Recovery(1, 1, 1, "within noise")
    noisy, teacher = answers(1, 2000, 0.6, 0.9, 0.15)
    found = recovery.of_means(noisy, teacher, 0.95)
    assert found.low < 1 < found.high and found.verdict == "within noise"
    student, teacher = answers(2, 2000, 0.6, 0.9, 0)
    assert recovery.of_means(student, teacher, 0.95).verdict == "lost"
    assert recovery.of_means(teacher, student, 0.95).verdict == "gained"


def test_what_cannot_be_divided_says_so():
    none = recovery.of_means([1.0] * 20, [0.0] * 20, 0.95)
    assert (none.value, none.low, none.verdict) == (None, None, "unknown") and "scores 0" in none.reason
    few = recovery.of_means([1.0], [1.0], 0.95)
    assert few.verdict == "unknown" and "1 documents, fewer than 10" in few.reason
    assert recovery.score([1.0], 0.95) == (1.0, None, None)
    near = recovery.of_draws(0.1, 0.2, np.array([0.1, 0.1]), np.array([0.2, 0.0]), 20, 0.95)
    assert near.value == 0.5 and near.verdict == "unknown" and near.reason
    assert near.plain() == {"value": 0.5, "reason": near.reason}
    assert Recovery(1, 1, 1, "within noise").plain() == {"value": 1, "low": 1, "high": 1, "verdict": "within noise"}
    assert recovery.score([1.0], 0.95).plain() == {"value": 1}
    with pytest.raises(ValueError, match="got 2 and 1 documents"):
        recovery.of_means([1, 1], [1], 0.95)


def test_mean_over_tasks():
    """0.9 +- 0.3 and 0.7 +- 0.4: 0.8 +- sqrt(0.09 + 0.16) / 2 = 0.25; what is unknown is left out."""
    tasks = [Recovery(0.9, 0.6, 1.2, "within noise"), Recovery(0.7, 0.3, 1.1, "within noise"), Recovery(None)]
    assert recovery.mean(tasks, 0.95) == pytest.approx((0.8, 0.55, 1.05, "within noise", ""))
    assert recovery.mean([Recovery(None)], 0.95).value is None


def test_above_chance():
    """0.7 of four options: (0.7 - 0.25) / 0.75 = 0.6; guessing is 0."""
    assert recovery.above_chance(0.7, 0.25) == pytest.approx(0.6)
    assert recovery.above_chance(0.25, 0.25) == 0
