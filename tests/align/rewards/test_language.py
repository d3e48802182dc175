r"""Language: Polish when asked in Polish, whatever mathematics, code and numbers stand between."""

# ruff: noqa: RUF001 (letters of other scripts)
from __future__ import annotations

import time

import pytest

from bielik_nemo.align.reward import Completion, Reward, Task, Verdict
from bielik_nemo.align.rewards.language import language

RIGHT, WRONG, OPEN = Verdict.CORRECT, Verdict.WRONG, Verdict.UNVERIFIABLE
POLISH = "Najpierw dodajemy dwa do trzech, a potem mnożymy wynik przez cztery. "
PLAIN = "Najpierw dodajemy dwa do trzech, a potem wynik dzielimy. Odpowiedz brzmi piec. "
ENGLISH = "First we add two and three, and then we multiply the result by four. "
GERMAN = "Zuerst addieren wir zwei und drei, dann multiplizieren wir das Ergebnis mit vier. "
CZECH = "Nejprve sečteme dvě a tři a potom výsledek vynásobíme čtyřmi. "
SLOVAK = "Najprv sčítame dva a tri a potom výsledok vynásobíme štyrmi, pretože treba. "
UKRAINIAN = "Спочатку додаємо два і три, а потім множимо результат на чотири. "
CODE = "```python\nfor index in range(10):\n    print('the value of this index is', index)\n```\n"
MATHS = r"\[ \text{area of the whole circle} = \pi r^2 \] $x_{first} = \frac{two}{three}$ "
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "the city of London in England"}}</tool_call> '
CASES = [
    ("pl", POLISH, RIGHT), ("pl", PLAIN, RIGHT), ("pl", ENGLISH, WRONG), ("pl", GERMAN, WRONG), ("pl", CZECH, WRONG),
    ("pl", SLOVAK, WRONG), ("pl", UKRAINIAN, WRONG),
    ("en", ENGLISH, RIGHT), ("de", GERMAN, RIGHT), ("cs", CZECH, RIGHT), ("sk", SLOVAK, RIGHT),
    ("uk", UKRAINIAN, RIGHT), ("en", POLISH, WRONG),
    ("pl-PL", POLISH, RIGHT), ("EN-gb", ENGLISH, RIGHT),
    ("pl", POLISH + CODE, RIGHT), ("pl", POLISH + MATHS * 3, RIGHT), ("pl", POLISH + CALL, RIGHT),
    ("pl", POLISH + "https://example.com/the/whole/answer/is/here", RIGHT),
    ("pl", CODE, OPEN), ("pl", MATHS, OPEN), ("pl", r"\boxed{5}", OPEN), ("pl", "", OPEN),
    ("pl", "1 + 2 = 3 " * 50, OPEN), ("pl", "Wynik: 5.", OPEN),
    ("", POLISH, OPEN), ("la", POLISH, OPEN), ("xx", POLISH, OPEN),
    # One that changes its language on the way: half of the pieces, then a tenth of them.
    ("pl", POLISH * 20 + ENGLISH * 20, WRONG), ("pl", ENGLISH * 20 + POLISH * 20, WRONG),
    ("pl", POLISH * 54 + ENGLISH * 6, RIGHT),
]  # fmt: skip


def score(text: str, tongue: str = "pl", **options: float) -> Reward:
    return language(Completion(text, tokens=10), Task("", language=tongue), **options)


@pytest.mark.parametrize(("tongue", "text", "verdict"), CASES)
def test_by_hand(tongue, text, verdict):
    found = score(text, tongue)
    assert found.verdict is verdict, found
    assert found.value == (verdict is RIGHT)


def test_parts_say_how_much_of_it():
    """3,000 letters of each language, in pieces of about 400: about half of them."""
    parts = score(POLISH * 40 + ENGLISH * 40).parts
    assert 0.35 < parts["share"] < 0.65 and 0.35 < parts["probability"] < 0.65
    assert score(POLISH * 40 + ENGLISH * 40, least=0.3).verdict is RIGHT


PIECES = [
    "```",
    "`",
    "$",
    "$$",
    r"\[",
    r"\(",
    "\\",
    "<tool_call>",
    "<tool_call><",
    "https://",
    "a ",
    "\\a",
    "`a",
    "$a",
    "𝒜",
    "\ud800",
    "ą",
    "{",
    "\n",
    "```\n",
]


@pytest.mark.parametrize("piece", PIECES)
def test_megabytes_take_little_time(piece):
    """Marks that open and never close are where patterns go back on themselves."""
    score(POLISH)  # reads the model
    began = time.process_time()
    score(piece * (1_000_000 // len(piece)) + POLISH)
    assert time.process_time() - began < 1.5
