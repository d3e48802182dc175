"""Length: DAPO's soft punishment, by hand."""

from __future__ import annotations

import pytest

from bielik_nemo.align.reward import Completion, Task, Verdict
from bielik_nemo.align.rewards.length import length


@pytest.mark.parametrize(
    ("tokens", "value"),
    [(0, 1), (100, 1), (101, 0.99), (150, 0.5), (175, 0.25), (199, 0.01), (200, 0), (4096, 0)],
)
def test_by_hand(tokens, value):
    """limit=100, most=200: (200 - n) / 100 between them, so 150 tokens are worth a half."""
    found = length(Completion("", tokens=tokens), Task(""), limit=100, most=200)
    assert found.value == pytest.approx(value) and found.parts == {"tokens": tokens}
    assert found.verdict is (Verdict.CORRECT if tokens <= 100 else Verdict.WRONG)


@pytest.mark.parametrize(("limit", "most"), [(100, 100), (200, 100), (-1, 100)])
def test_the_limit_is_below_the_most(limit, most):
    with pytest.raises(ValueError, match="allowed: 0 <= limit < most"):
        length(Completion("", 1), Task(""), limit=limit, most=most)
