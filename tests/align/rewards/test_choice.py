r"""Single choice: what is read as the option, by hand."""

from __future__ import annotations

import time

import pytest

from bielik_nemo.align.reward import Completion, Task, Verdict
from bielik_nemo.align.rewards.choice import choice

RIGHT, WRONG, OPEN = Verdict.CORRECT, Verdict.WRONG, Verdict.UNVERIFIABLE
CASES = [
    # Alone.
    ("A", "A", RIGHT), ("A", "B", WRONG), ("B", "(B)", RIGHT), ("B", "**b)**", RIGHT), ("B", "b", RIGHT),
    ("C", "„C”", RIGHT),
    ("C", "C.", RIGHT), ("C", "[C]", RIGHT), ("A", "", WRONG), ("A", "Nie wiem.", WRONG), ("A", "AB", WRONG),
    ("A", "Ab", WRONG),
    # In a box; the last one counts.
    ("D", r"\boxed{D}", RIGHT), ("D", r"$\boxed{\text{D}}$", RIGHT), ("D", r"\boxed{(d)}", RIGHT),
    ("D", r"\boxed{\mathbf{D}}", RIGHT),
    ("C", r"\boxed{C) Warszawa}", RIGHT), ("C", r"\boxed{\text{C. Warszawa}}", RIGHT),
    ("B", r"\boxed{A} nie, \boxed{B}", RIGHT),
    ("A", r"\boxed{A} nie, \boxed{B}", WRONG), ("A", r"\boxed{A, B}", WRONG), ("A", r"\boxed{A i B}", WRONG),
    ("A", r"\boxed{AB}", WRONG),
    ("C", r"\boxed{C = 5}", WRONG), ("C", r"Odpowiedź: A, czyli \boxed{C}", RIGHT),
    # After a word that says so.
    ("C", "Odpowiedź: C", RIGHT), ("C", "ODPOWIEDŹ: C", RIGHT), ("C", "Odpowiedz: c)", RIGHT), ("C", "odp. C", RIGHT),
    ("C", "Odp: **C**", RIGHT),
    ("B", "Poprawna odpowiedź to B.", RIGHT), ("B", "Prawidłową odpowiedzią jest B", RIGHT),
    ("B", "Właściwa jest odpowiedź (B), bo 2+2=4.", RIGHT),
    ("C", "Odpowiedź: C, ponieważ A jest błędne.", RIGHT), ("A", "Odpowiedź: C, ponieważ A jest błędne.", WRONG),
    ("C", "### Odpowiedź\n\nC", RIGHT), ("C", "Wybieram opcję C.", RIGHT), ("D", "Odpowiedź: wariant D) 12 cm", RIGHT),
    ("C", "The answer is (C).", RIGHT), ("C", "The correct answer is option C", RIGHT),
    ("C", "Final answer: **C**", RIGHT), ("A", "Answer: (a)", RIGHT),
    # The last statement counts; two options in it are wrong; what is ruled out is none.
    ("B", "Answer: A\nNo. Answer: B", RIGHT), ("A", "Answer: A\nNo. Answer: B", WRONG),
    ("A", "Odpowiedź: A lub B", WRONG), ("A", "Odpowiedź: A/B", WRONG),
    ("A", "Odpowiedź: A i B", WRONG), ("A", "Odpowiedź: A, A", RIGHT), ("A", "Odpowiedź to nie A, lecz B", WRONG),
    ("A", "Answer: A and C", WRONG),
    # Words of one letter are no options.
    ("A", "Odpowiedź: a to nie jest proste", WRONG), ("A", "A to początek.", WRONG),
    ("A", "Odpowiedź: A i tyle.", RIGHT),
    # The last line.
    ("C", "Myślę, że to A.\nB odpada.\n\nC", RIGHT), ("C", "Liczymy: 2+2=4\nC) 4", RIGHT),
    ("C", "A) 1\nB) 2\nC) 3", WRONG),
    ("C", "A) 1\nB) 2\nC) 3\n\nC", RIGHT), ("C", "C\nBo tak.", WRONG),
    # The task's own letter in any dress; what is not a letter cannot be verified.
    ("(C)", "C", RIGHT), ("c", "C", RIGHT), (r"\boxed{C}", "C", RIGHT), ("C. Warszawa", "C", RIGHT),
    ("J", "Odpowiedź: J", RIGHT), ("A", "Odpowiedź: J", WRONG),
    (None, "A", OPEN), ("", "A", OPEN), ("5", "A", OPEN), ("A lub B", "A", OPEN), (1, "A", OPEN),
    ("Warszawa", "A", OPEN),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "text", "verdict"), CASES)
def test_by_hand(wanted, text, verdict):
    found = choice(Completion(text, tokens=10), Task("", wanted))
    assert found.verdict is verdict
    assert found.value == (verdict is RIGHT)


def test_parts():
    """How many options were named, and whether in a box."""
    assert choice(Completion(r"\boxed{A, B}", 5), Task("", "A")).parts == {"options": 2, "boxed": 1}
    assert choice(Completion("Odpowiedź: A", 5), Task("", "A")).parts == {"options": 1, "boxed": 0}
    assert choice(Completion("?", 5), Task("", "A")).parts == {"options": 0, "boxed": 0}


@pytest.mark.parametrize(
    "piece",
    [
        "odpowiedź ",
        "answer: ",
        "A, ",
        "A)\n",
        "(",
        "* ",
        "\n",
        "A lub ",
        r"\boxed{",
        r"\boxed{A}",
        "answer to to ",
        "odpowiedź - ",
        "A/",
    ],
)
def test_megabytes_take_no_time(piece):
    began = time.process_time()
    choice(Completion(piece * (1_000_000 // len(piece)), 5), Task("", "B"))
    assert time.process_time() - began < 1
