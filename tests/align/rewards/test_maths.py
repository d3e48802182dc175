r"""Mathematics: what counts as right, by hand, and that no answer reaches code, nor takes time or memory.

Count the cases of all rewards with `pytest tests/align/rewards --collect-only -q -k by_hand | grep -c ::`.
"""

# ruff: noqa: RUF001 (signs that look alike)
from __future__ import annotations

import builtins
import contextlib
import os
import subprocess
import sys
import time

import pytest
import sympy
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy

from bielik_nemo.align.bounds import refused
from bielik_nemo.align.boxed import last_boxed
from bielik_nemo.align.notation import read
from bielik_nemo.align.reward import Completion, Reward, Task, Verdict
from bielik_nemo.align.rewards.maths import maths

RIGHT, WRONG, OPEN = Verdict.CORRECT, Verdict.WRONG, Verdict.UNVERIFIABLE
THIN, NO_BREAK, NARROW = "\u2009", "\u00a0", "\u202f"


def box(answer: str) -> str:
    return rf"\boxed{{{answer}}}"


POLISH = [
    # Decimal commas. 3,14 is 3.14; a point is a decimal point as well.
    ("3,14", "3,14", RIGHT), ("3,14", "3.14", RIGHT), ("3.14", "3,14", RIGHT), ("3,14", "3{,}14", RIGHT),
    ("3,14", "314", WRONG), ("3,14", "3,41", WRONG), ("0,5", r"\frac{1}{2}", RIGHT), ("0,5", "1/2", RIGHT),
    ("-0,25", r"-\frac14", RIGHT), ("-0,25", "0,25", WRONG), ("2,50", "2,5", RIGHT), ("1,000", "1", RIGHT),
    (3.5, "3,5", RIGHT), (7, "7", RIGHT), (7, "7,0", RIGHT), ("0,333", r"\frac13", WRONG), ("2,5", "2,5000001", RIGHT),
    # Thousands: spaces of every kind, points before a comma, several points or commas.
    ("1000,5", "1 000,5", RIGHT), ("1000,5", "1.000,5", RIGHT), ("1000,5", r"1\,000{,}5", RIGHT),
    ("1000,5", r"1\ 000,5", RIGHT), ("1000,5", "1~000,5", RIGHT), ("12 345", "12345", RIGHT),
    ("12345", f"12{THIN}345", RIGHT), ("12345", f"12{NO_BREAK}345", RIGHT), ("12345", f"12{NARROW}345", RIGHT),
    ("1000000", "1 000 000", RIGHT), ("1000000", "1.000.000", RIGHT), ("1000000", "1,000,000", RIGHT),
    ("1000000", r"10^6", RIGHT), ("300 000", r"3 \cdot 10^5", RIGHT), ("300 000", "3e5", RIGHT),
    ("1000", "1 00 0", WRONG), ("17", "5 12", WRONG), ("1 000,5", "1 000", WRONG), ("1234,5", "1,234.5", RIGHT),
    # Periodic decimals as schools write them: 0,1(6) = 15/90 = 1/6.
    (r"\frac13", "0,(3)", RIGHT), (r"\frac16", "0,1(6)", RIGHT), ("0,(3)", r"0,\overline{3}", RIGHT),
    (r"\frac13", "0,(6)", WRONG), ("1", "0,(9)", RIGHT),
    # Within brackets commas separate, unless semicolons do.
    ("(1,2)", "(1,2)", RIGHT), ("(1,2)", "(2,1)", WRONG), ("(1,2)", "1,2", WRONG), (r"\{1,2\}", r"\{2,1\}", RIGHT),
    (r"\{1,2\}", r"\{1.2\}", WRONG), ("(1,5; 2)", "(1.5, 2)", RIGHT), ("(1,5;2)", r"\left(\frac32; 2\right)", RIGHT),
    ("(1,5; 2)", "(1; 5; 2)", WRONG), (r"\{0,5; 1,5\}", r"\{1,5; 0,5\}", RIGHT), ("0,5; 1,5", "1,5; 0,5", RIGHT),
    ("1,5, 2,5", "2,5 i 1,5", RIGHT), (r"\frac{1,5}{2}", "0,75", RIGHT),
    # Intervals, the closed one also as schools write it.
    (r"\langle 1; 2)", "[1,2)", RIGHT), ("<1; 2>", "[1;2]", RIGHT), ("[1,2)", "(1,2)", WRONG),
    ("⟨0;1⟩", "[0;1]", RIGHT),
    (r"(-\infty; 3]", r"\left(-\infty,3\right]", RIGHT), (r"(-\infty, 3)", r"(3, \infty)", WRONG),
    (r"(-\infty,0) \cup (0,\infty)", r"\mathbb{R} \setminus \{0\}", RIGHT), ("x>3", r"(3,\infty)", RIGHT),
    (r"(3,\infty)", "x > 3", RIGHT), (r"(3,\infty)", r"x \ge 3", WRONG), (r"x\in(1;2)", "(1;2)", RIGHT),
    # Units: the same in any of its forms; another one is wrong; left out or added is right.
    ("5 cm", r"5\,\text{cm}", RIGHT), ("5 cm", "5cm", RIGHT), ("5 cm", r"5\ \mathrm{cm}", RIGHT), ("5 cm", "5", RIGHT),
    ("5", "5 cm", RIGHT), ("5 cm", "5 m", WRONG), ("5 cm", "6 cm", WRONG), ("5 m", "500 cm", WRONG),
    ("5 cm", "5 centymetrów", RIGHT), ("5 cm", r"5 \text{ cm}^2", WRONG), ("25 cm^2", r"25\text{ cm}^{2}", RIGHT),
    ("25 cm^2", "25 cm²", RIGHT), ("25 cm^2", "25 centymetrów kwadratowych", RIGHT), ("25 cm^2", "25 cm", WRONG),
    ("8 m^3", r"8\ \text{m}^3", RIGHT), ("8 m^3", "8 m²", WRONG), ("1,5 kg", "1,5 kilograma", RIGHT),
    ("1,5 kg", "1,5 g", WRONG), ("2 l", "2 litry", RIGHT), ("2 m", "2m", RIGHT),
    (r"2\sqrt{3} cm", r"\sqrt{12}\text{ cm}", RIGHT),
    (r"12\pi\text{ cm}^2", r"12\pi", RIGHT), ("12 zł", r"12\text{ złotych}", RIGHT), ("12 zł", "12,00 zł", RIGHT),
    ("12 zł", "12 PLN", RIGHT), ("12 zł", "12 gr", WRONG), ("12 zł", "12 euro", WRONG), ("12,50 zł", "12.5", RIGHT),
    ("3 godz.", "3 h", RIGHT), ("3 godz.", "3 godziny", RIGHT), ("3 godziny", "3 minuty", WRONG),
    ("45 minut", "45 min", RIGHT), ("2 lata", "2 lat", RIGHT), ("7 dni", "7 dób", RIGHT),
    ("60 km/h", r"60\ \frac{\text{km}}{\text{h}}", RIGHT),
    ("60 km/h", r"60\text{ km}/\text{h}", RIGHT), ("60 km/h", "60 kilometrów na godzinę", RIGHT),
    ("60 km/h", "60 m/s", WRONG), ("12 jabłek", "12 jabłka", RIGHT), ("12 jabłek", "12 gruszek", WRONG),
    ("7 osób", "7 osoby", RIGHT), ("7 osób", "7", RIGHT), ("90°", r"90^\circ", RIGHT), ("90°", "90 stopni", RIGHT),
    ("90°", "90", RIGHT), ("90°", "80°", WRONG), ("20°C", r"20^\circ\text{C}", RIGHT), ("20°C", "20°F", WRONG),
    (r"x = 5 cm", "5 cm", RIGHT),
    # Percent: its value or its number.
    (r"50\%", "50%", RIGHT), ("50%", "0,5", RIGHT), ("50%", r"\frac12", RIGHT), ("50%", "50", RIGHT),
    ("0,5", "50%", RIGHT),
    ("50", "50%", RIGHT), ("50%", "50 procent", RIGHT), ("50%", "5%", WRONG), ("12,5%", "0,125", RIGHT),
    ("50%", "50 cm", WRONG), ("5 cm", "500%", WRONG), ("5%", "0,05 cm", WRONG),
    # Words of the language, names of functions, yes and no.
    ("x=1 lub x=2", "x_1=1, x_2=2", RIGHT), ("x=1 lub x=2", "x=2 lub x=1", RIGHT), ("1, 2", r"x_1=2 \lor x_2=1", RIGHT),
    ("1 i 2", "2 oraz 1", RIGHT), ("1 i 2", "1 i 3", WRONG), (r"\operatorname{tg} x", r"\tan x", RIGHT),
    (r"\text{ctg } x", r"\cot x", RIGHT), ("tak", "Tak.", RIGHT), ("tak", r"\text{tak}", RIGHT), ("tak", "nie", WRONG),
    ("Warszawa", r"\text{Warszawa}", RIGHT), ("poniedziałek", "Poniedziałek", RIGHT), ("środa", "sobota", WRONG),
]  # fmt: skip
ANY = [
    ("2", "2", RIGHT), ("2", " 2. ", RIGHT), ("2", "$2$", RIGHT), ("2", "{2}", RIGHT), ("2", "+2", RIGHT),
    ("2", "3", WRONG),
    ("2", "−2", WRONG), ("-2", "−2", RIGHT), ("1/2", r"\dfrac{1}{2}", RIGHT), ("1/2", r"\frac12", RIGHT),
    ("1/2", r"\frac{2}{4}", RIGHT), ("1/2", r"\frac{1}{3}", WRONG), ("2 1/2", r"\frac52", RIGHT),
    (r"2\frac{1}{2}", "2.5", RIGHT),
    ("3:4", "0.75", RIGHT), (r"2\sqrt{3}", r"\sqrt{12}", RIGHT), (r"\sqrt{2}", "1.41", WRONG),
    (r"\frac{1}{\sqrt2}", r"\frac{\sqrt{2}}{2}", RIGHT),
    ("√2", r"\sqrt{2}", RIGHT), (r"\sqrt[3]{8}", "2", RIGHT), (r"\pi", "π", RIGHT), (r"\pi", "3.14", WRONG),
    (r"2\pi", r"\pi \cdot 2", RIGHT),
    ("2^{10}", "1024", RIGHT), ("2^{2024}", "4^{1012}", RIGHT), ("2^{2024}", "4^{1013}", WRONG),
    ("10!", "3628800", RIGHT),
    (r"\binom{5}{2}", "10", RIGHT), (r"\log_2 8", "3", RIGHT), (r"\log 100", "2", RIGHT), (r"\ln 2", r"\ln 3", WRONG),
    ("e^{2}", "e^2", RIGHT),
    (r"\sin 30^\circ", r"\frac12", RIGHT), (r"\cos 60°", r"\sin 30°", RIGHT), ("x^2-1", "(x-1)(x+1)", RIGHT),
    ("x^2-1", "x^2+1", WRONG),
    ("x+y", "y+x", RIGHT), ("5x", "5 x", RIGHT), ("5x", "5", WRONG), ("x=5", "5", RIGHT), ("5", "x = 5", RIGHT),
    ("x=5", "y=5", WRONG),
    ("y=2x+1", "2x+1", RIGHT), ("y=2x+1", "y=1+2x", RIGHT), ("x^2+y^2=4", "y^2+x^2=4", RIGHT),
    ("a_n=2n+1", "2n+1", RIGHT),
    (r"\pm 2", "2, -2", RIGHT), (r"\pm 2", "2", WRONG), (r"\{1,2,3\}", r"\{3,2,1\}", RIGHT),
    (r"\{1,2,3\}", r"\{1,2\}", WRONG),
    (r"\{1,2\}", "(1,2)", WRONG), ("(1,2,3)", "(1,3,2)", WRONG), (r"\emptyset", r"\varnothing", RIGHT),
    (r"\emptyset", "0", WRONG),
    (r"\infty", r"-\infty", WRONG), (r"\infty", "∞", RIGHT),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", RIGHT),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}", WRONG),
    ("1 < x < 2", "(1,2)", RIGHT),
    ("0.333333", r"\frac13", RIGHT), ("0.33", r"\frac13", WRONG), ("0.1+0.2", "0.3", RIGHT), ("1/3+1/6", "1/2", RIGHT),
    ("6.02e23", r"6.02 \cdot 10^{23}", RIGHT), ("abc", "abd", WRONG), (r"\boxed{4}", "4", RIGHT),
    ("$5", r"\$5", RIGHT), ("$5", "€5", WRONG),
]  # fmt: skip
ENGLISH = [
    ("1234", "1,234", RIGHT), ("1234.5", "1,234.5", RIGHT), ("3.14", "3,14", WRONG), ("3, 14", "14, 3", RIGHT),
    ("1234567", "1,234,567", RIGHT), ("1234", "1{,}234", RIGHT), ("(1,234)", "(1,234)", RIGHT),
    ("(1,234)", "1234", WRONG),
    ("60 miles", "60", RIGHT), ("5 hours", "5 h", RIGHT), ("5 hours", "5 minutes", WRONG), ("1 or 2", "2 and 1", RIGHT),
    ("5 meters", r"5\text{ m}", RIGHT), ("12 square meters", r"12\text{ m}^2", RIGHT), ("yes", "Yes", RIGHT),
]  # fmt: skip
WHOLE = [
    # The whole answer: which box counts, and what is no box.
    ("2", r"First \boxed{1}, no: \boxed{2}.", RIGHT), ("2", r"\boxed{2}, no: \boxed{1}", WRONG),
    ("2", "The answer is 2.", WRONG),
    ("2", r"\boxed{}", WRONG), ("2", r"\boxed{2", WRONG), ("2", r"\boxed{2} and \boxed{3", WRONG),
    ("2", r"\boxed{\boxed{2}}", RIGHT),
    ("2", r"\boxed {2}", RIGHT), ("2", r"\boxed 2", WRONG), ("2", r"boxed{2}", WRONG), ("2", "", WRONG),
    (r"\{2\}", r"\boxed{\{2\}}", RIGHT),
    (r"\frac{1}{2}", r"$$\boxed{\frac{1}{2}}$$", RIGHT), ("2", "\\boxed{\n2\n}", RIGHT),
    ("2", r"\boxed{2}" + " padding" * 5000, RIGHT),
    # Tasks that say too little.
    (None, r"\boxed{2}", OPEN), ("", r"\boxed{2}", OPEN), (True, r"\boxed{1}", OPEN), ([2], r"\boxed{2}", OPEN),
    ({"a": 2}, r"\boxed{2}", OPEN),
    ("2" * 301, r"\boxed{2}", OPEN), (r"\int x dx", r"\boxed{2}", OPEN), ("1/0", r"\boxed{2}", OPEN),
    ("9^{9^{9^9}}", r"\boxed{5}", OPEN),
    # A reference that cannot be read still equals itself, and no box is wrong whatever it is.
    (r"\int x dx", r"\boxed{\int x dx}", RIGHT), ("9^{9^{9^9}}", r"\boxed{9^{9^{9^9}}}", RIGHT),
    (r"\int x dx", "none", WRONG),
    ("2", r"\boxed{1/0}", WRONG), ("2", r"\boxed{\int x dx}", WRONG), ("2", r"\boxed{\text{two or so}}", WRONG),
]  # fmt: skip
CASES = [("pl", wanted, box(given), verdict) for wanted, given, verdict in POLISH]
CASES += [(tongue, wanted, box(given), verdict) for tongue in ("", "pl") for wanted, given, verdict in ANY]
CASES += [("en", wanted, box(given), verdict) for wanted, given, verdict in ENGLISH]
CASES += [("", *case) for case in WHOLE]


def score(text: str, answer: object, language: str = "") -> Reward:
    return maths(Completion(text, tokens=10), Task("", answer, language))


@pytest.mark.parametrize(("language", "wanted", "text", "verdict"), CASES)
def test_by_hand(language, wanted, text, verdict):
    found = score(text, wanted, language)
    assert found.verdict is verdict
    assert found.value == (verdict is RIGHT)


@pytest.mark.parametrize(
    ("text", "wanted", "parts"),
    [
        (box("5 cm"), "5 cm", {"boxed": 1, "unit": 1}),
        (box("5"), "5 cm", {"boxed": 1, "unit": 0}),
        (box("5 m"), "5 cm", {"boxed": 1, "unit": 0}),
        (box("5"), "5", {"boxed": 1, "unit": 1}),
        ("5", "5", {"boxed": 0, "unit": 0}),
    ],
)
def test_parts(text, wanted, parts):
    assert score(text, wanted).parts == parts


NEVER = "__import__('os').system('touch /tmp/reached')"
CODE = [
    NEVER, f"({NEVER})", rf"\text{{{NEVER}}}", rf"\operatorname{{{NEVER}}}(1)", "().__class__", "exec('1')",
    "open('x')", "lambda: 0",
    "print(1)", "S('1')", "x.__class__", "sympify('1')", "1;import os", "Integer(1)", "f'{1}'", "a=b=c",
    "1 if 1 else 2", "[].append(1)",
]  # fmt: skip
ALL_KINDS = [
    *CODE,
    "1/2",
    r"\frac12",
    r"\{1,2\}",
    "(1,2)",
    r"x^2-1",
    "x=5",
    "x>3",
    r"\sqrt{12}",
    "1,2",
    "2^{10}",
    "10!",
    r"\binom{5}{2}",
]
ALL_KINDS += [
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
    r"\sin 30^\circ",
    "50%",
    "f(x)=2",
    "x^2+y^2=4",
    "1<x<2",
    "abc",
    "5 cm",
    "e^x",
]


def test_nothing_of_an_answer_is_evaluated_as_code(monkeypatch):
    """Every kind of answer against every kind of reference, with all ways from text to code closed.

    These are Python's own, and sympy's: `parse_expr` and `eval_expr`, to which `sympify` of a text comes,
    and `lambdify`,
    which writes functions out of symbols' names. All has been done once before, since importing a module compiles it.
    """
    pairs = [
        (given, wanted) for given in ALL_KINDS for wanted in ("5", "x+1", "x=3", r"\{1,2\}", given, given + "+1-1")
    ]
    for given, wanted in pairs:
        score(box(given), wanted, "pl")
    reached, closed = [], closed_ways()
    assert len(closed) > 8
    for given, wanted in pairs:
        with monkeypatch.context() as patch:
            for home, name in closed:
                patch.setattr(home, name, lambda *texts, **options: reached.append(texts) or 1 / 0)
            score(box(given), wanted, "pl")
        assert not reached, (given, wanted, reached)
    assert not os.path.exists("/tmp/reached")


def closed_ways() -> list[tuple[object, str]]:
    libraries = ("sympy.", "math_verify", "latex2sympy2")
    modules = [module for name, module in sys.modules.items() if name.startswith(libraries)]
    ways = ("parse_expr", "eval_expr", "stringify_expr", "lambdify")
    found = [(module, name) for module in (sympy, *modules) for name in ways if hasattr(module, name)]
    return [(builtins, "eval"), (builtins, "exec"), (builtins, "compile"), *found]


@pytest.mark.parametrize("read_by", [sympy.Number, sympy.sympify, _Latex2Sympy().parse_number])
def test_the_guard_would_see_it(monkeypatch, read_by):
    """Upstream reads each number as code; when it no longer does, `latex._Reader` is not needed any more."""
    reached = []
    for home, name in closed_ways():
        monkeypatch.setattr(home, name, lambda *texts, **options: reached.append(texts) or 1 / 0)
    with contextlib.suppress(ZeroDivisionError):
        read_by("12")
    monkeypatch.undo()
    assert reached


HUGE = {
    "power tower": "9^{9^{9^9}}", "power of powers": "((9^{9999})^{9999})^{9999}", "long exponent": "9^{99999999}",
    "braced base": "{9^{999}}^{999}",
    "factorials": "(((9!)!)!)!", "factorial": "99999!", "power of a factorial": "999!^{999}",
    "factorial exponent": "2^{99!}", "double factorial": "99!!",
    "long number": "9" * 250, "binomial": r"\binom{99999999}{44444444}", "ordered powers": "(9^{9^9}, 8^{9^9})",
    "powers of sums": "(x+y+z)^{999}", "sum": r"\sum_{i=1}^{99999999} i", "product": r"\prod_{i=1}^{99999} i",
    "integral": r"\int_0^1 x^x dx",
    "limit": r"\lim_{x \to 0} x^x", "exponentials": r"\exp(\exp(\exp(\exp(9))))", "determinant": r"\det(A)",
    "long root": r"\sqrt[999]{2}",
    "fractions": r"\frac{1}{" * 1000 + "2" + "}" * 1000, "brackets": "(" * 140 + "1" + ")" * 140,
    "roots": r"\sqrt{" * 20 + "2" + "}" * 20,
    "sets": r"\{" * 100 + r"\}" * 100, "bars": "|" * 100 + "x" + "|" * 100, "subscripts": "x_" * 100,
    "nested subscripts": "x_{" * 7 + "1" + "}" * 7, "unknown": r"\catcode`\@=11", "emoji": "🦅" * 100,
}  # fmt: skip


@pytest.mark.parametrize("name", HUGE)
def test_huge_expressions_are_not_given_to_the_parser(name):
    text = HUGE[name]
    assert refused(read(text, "").text)
    began = time.process_time()
    assert score(box(text), "5").verdict is WRONG
    assert time.process_time() - began < 0.2


SLOW = [
    "+".join(rf"\sqrt{{{prime}}}" for prime in (2, 3, 5, 7, 11, 13, 17, 19)),
    r"\frac{1}{" + "+".join(rf"\sqrt{{{prime}}}" for prime in (2, 3, 5, 7, 11, 13, 17, 19)) + "}",
    r"\sqrt{2+\sqrt{3+\sqrt{5+\sqrt{7+\sqrt{11+\sqrt{13}}}}}}",
    r"(\sin(x+y)+\cos(x-y))^{6}(\tan x+\cot y)^{6}",
    r"(x+1)^{30}(y+2)^{30}(z+3)^{30}(x+y+z)^{30}",
    r"\frac{1}{(x+1)^{30}(y+2)^{30}}+\frac{1}{(x+z)^{30}}+\frac{a+b}{(x-y)^{30}}",
    "7^{9999}", r"999! \cdot 5", r"(\tan x)^{2}+999!", r"\frac{7^{4999}+1}{3^{4999}+2}", "999!" + r"\cdot 999!" * 20,
    r"\cdot ".join([r"\binom{999}{500}"] * 12),
    r"x^{30}+x^{7}+3x=2", r"\sin x + x = \cos x", "x^{9}-x^{3}+2x<5", "1" + "+1" * 140, "-" * 200 + "1",
    "[[[1]]]" * 40, "1," * 140 + "1",
    r"\{" + ",".join(f"x+{number}" for number in range(50)) + r"\}", r"\le " * 60, "x" * 290, "1e999999999",
    "(" * 3 + "1+" * 100, r"\frac12" * 40,
]  # fmt: skip


def test_expressions_that_are_slow_to_simplify_are_not_simplified():
    """What passes the bounds, against references of every kind: sympy would take minutes for some of them."""
    score(box("((1, [x]))"), "5")  # the parser learns its grammar at first use
    for text in SLOW:
        for wanted in ("5", r"\sqrt{2}+\sqrt{3}", "x^2+1", "(1,2)", r"\{1,2\}", "x^3+x=1"):
            began = time.process_time()
            assert score(box(text), wanted).verdict is not RIGHT, (text, wanted)
            assert time.process_time() - began < 1.5, (text, wanted)


LONG = {
    "braces": r"\boxed" + "{" * 100_000, "closed braces": r"\boxed" + "{" * 100_000 + "}" * 100_000,
    "boxes": r"\boxed{" * 150_000,
    "closed boxes": r"\boxed{1}" * 120_000, "megabyte": r"\boxed{" + "1" * 1_000_000 + "}",
    "nested boxes": r"\boxed{" * 60_000 + "}" * 60_000,
    "backslashes": r"\boxed{" + "\\" * 1_000_000, "dollars": "$" * 1_000_000 + r"\boxed{1}",
    "spaces": r"\boxed{" + " " * 1_000_000 + "1}",
    "line breaks": "\n" * 1_000_000 + r"\boxed{1}", "after a box": r"\boxed{1}" + "{" * 1_000_000,
}  # fmt: skip


@pytest.mark.parametrize("name", LONG)
def test_megabytes_take_no_time(name):
    began = time.process_time()
    assert score(LONG[name], "5").verdict is WRONG
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "piece",
    [
        "1 ",
        "1,",
        "1.",
        "{",
        r"\text{",
        "a ",
        "1a",
        "i ",
        "^",
        r"\frac",
        "1 000",
        "cm ",
        "/ ",
        "$",
        "(1",
        r"\{",
        "1e",
        "0,(",
        "x_1=",
        "| ",
    ],
)
def test_notation_is_read_in_no_time_however_it_repeats(piece):
    """Patterns that go back on themselves show on repetition: the longest text that is read, of each piece."""
    text = (piece * 300)[:299]
    began = time.process_time()
    for language in ("pl", "en"):
        read(text, language)
        read(text + "!", language)
        refused(text)
    assert time.process_time() - began < 0.2


def test_all_of_it_fits_into_little_memory():
    """A process that may have 400 MB of address space beyond its libraries reads all of these to their end."""
    program = (
        "import resource, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import test_maths as t\n"
        "t.score(t.box('(1,2)'), '5')\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)\n"
        "for text in [*t.LONG.values(), *map(t.box, t.HUGE.values()), *map(t.box, t.SLOW)]:\n"
        "    t.score(text, '5')\n"
        "print('read', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, 'MiB')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, os.path.dirname(__file__)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("read"), done.stderr


@pytest.mark.parametrize(
    ("text", "held"),
    [
        (r"\boxed{1}", "1"), (r"\boxed{a{b}c}", "a{b}c"), (r"\boxed{\{1\}}", r"\{1\}"), (r"\boxed{1}\boxed{2}", "2"),
        (r"\boxed{1}\boxed{2", None), (r"\boxed", None), ("", None), (r"\boxed  {3}", "3"), (r"\boxed{}", ""),
        (r"\boxed{\}", None),
    ],
)  # fmt: skip
def test_the_last_box(text, held):
    assert last_boxed(text) == held
