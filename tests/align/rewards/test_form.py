r"""Form: one box, and an end."""

from __future__ import annotations

import time

import pytest

from bielik_nemo.align.reward import Completion, Task, Verdict
from bielik_nemo.align.rewards.form import form

RIGHT, WRONG = Verdict.CORRECT, Verdict.WRONG
CASES = [
    (r"Wynik to \boxed{5}.", True, 1, RIGHT), (r"Wynik to \boxed{5}.", False, 1, WRONG),
    ("Wynik to 5.", True, 1, WRONG),
    (r"\boxed{5} \boxed{5}", True, 1, WRONG), (r"\boxed{}", True, 1, WRONG), (r"\boxed{5", True, 1, WRONG),
    (r"\boxed{\frac{1}{2}}", True, 1, RIGHT),
    (r"\boxed{\boxed{5}}", True, 1, WRONG), ("", True, 1, WRONG), (r"\boxed 5", True, 1, WRONG),
    ("<tool_call>{}</tool_call>", True, 0, RIGHT), (r"\boxed{5}", True, 0, WRONG),
    (r"\boxed{5} \boxed{6}", True, 2, RIGHT),
]  # fmt: skip


@pytest.mark.parametrize(("text", "ended", "boxes", "verdict"), CASES)
def test_by_hand(text, ended, boxes, verdict):
    found = form(Completion(text, tokens=10, ended=ended), Task(""), boxes=boxes)
    assert found.verdict is verdict and found.value == (verdict is RIGHT)
    assert found.parts["ended"] == ended


@pytest.mark.parametrize("text", [r"\boxed{" * 140_000, r"\boxed" + "{" * 1_000_000, r"\boxed{1}" * 110_000])
def test_megabytes_take_no_time(text):
    began = time.process_time()
    assert form(Completion(text, tokens=10), Task("")).verdict is WRONG
    assert time.process_time() - began < 1
