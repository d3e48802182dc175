r"""What an algebra system may be given of a text that anybody wrote: bounds that a look at it can tell.

9^{9^{9^9}} takes no time to read and all memory to compute. So only known commands pass, brackets and numbers of a
limited size, no power of a power, and powers, factorials and binomials whose digits are counted first.
"""

from __future__ import annotations

import math
import re

from bielik_nemo.align.boxed import group
from bielik_nemo.align.notation import LONGEST

COMMANDS = frozenset(
    "frac sqrt pi infty cdot times div pm mp le leq ge geq lt gt ne neq in cup cap setminus emptyset "
    "mathbb sin cos tan cot sec csc arcsin arccos arctan log ln lg binom circ alpha beta gamma delta epsilon "
    "varepsilon theta lambda mu phi varphi omega sigma rho begin end overline".split()
)
_NUMBER_DIGITS = 60
_POWER_DIGITS = 10_000  # of one number, and of all together
_SYMBOLIC_POWER = 30
_BRACKETS, _BRACES = 3, 8  # in one another; the parser takes ever longer for each
_FUNCTIONS = 8

_COMMAND = re.compile(r"\\([A-Za-z]+)")
_TOO_MUCH = re.compile(
    rf"\d{{{_NUMBER_DIGITS + 1}}}"
    r"|(?<![\d_])\d+ +\d|!!|[^\x20-\x7e]|[\"'`#@$]|__|_ *(?:[^ {}]|\{[^{}]*) *_"
    r"|\\(?:begin|end)\{(?!(?:p|b)?matrix\})|\\mathbb(?!\{[RNZQC]\})|\\sqrt *\[(?!\d{1,2}\])"
)
_BINOMIAL = re.compile(r"\\binom *\{[\w+ -]{1,4}\} *\{[\w+ -]{1,4}\}")
_FACTORIAL = re.compile(r"(?:(?<![\d.])\d{1,3}|(?<!\d)[A-Za-z]|\([A-Za-z][+-]\d\)|\(\d?[A-Za-z]\))!")


def refused(text: str) -> bool:
    """Whether a text in the notation of `notation.read` is more than may be computed."""
    return bool(
        len(text) > LONGEST
        or _TOO_MUCH.search(text)
        or not COMMANDS.issuperset(_COMMAND.findall(text))
        or len(re.findall(r"\\(?:sqrt|sin|cos|tan|cot|sec|csc|arc[a-z]+|log|ln|lg)", text)) > _FUNCTIONS
        or _depth(text, "([|") > _BRACKETS
        or _depth(text, "{") > _BRACES
        or text.count("|") > 2 * _BRACKETS
        or text.count("!") != len(_FACTORIAL.findall(text))
        or text.count(r"\binom") != len(_BINOMIAL.findall(text))
        or _power(text) > _POWER_DIGITS
    )


def _depth(text: str, opening: str) -> int:
    closing = opening.translate(str.maketrans("([{", ")]}"))
    depth = most = 0
    for character in text:
        depth += (character in opening) - (character in closing)
        most = max(most, depth)
    return most


def _power(text: str) -> float:
    """Digits that all powers in a text have together, or more; infinite where that cannot be told."""
    digits = 0.0
    for at in (position for position, character in enumerate(text) if character == "^"):
        exponent = group(text, at + 1)
        if exponent is None:
            exponent = re.match(r" *(\\[A-Za-z]+|.|$)", text[at + 1 :])[1]
        numbers = [int(number) for number in re.findall(r"\d+", exponent)]
        if "^" in exponent or "!" in exponent or r"\binom" in exponent or sum(len(str(n)) for n in numbers) > 4:
            return math.inf
        base = _before(text[:at].rstrip())
        if re.search(r"[\^!]|\\binom", base):
            return math.inf
        times = math.prod(max(1, number) for number in numbers)
        if re.search(r"[A-Za-z]", _COMMAND.sub("", base.replace("e", ""))) or r"\s" in base:
            if times > (_SYMBOLIC_POWER if len(base) > 1 else 3 * _SYMBOLIC_POWER):
                return math.inf
        digits += times * max(1, len(re.findall(r"\d", base)))
    return digits


def _before(text: str) -> str:
    """What a power that follows is a power of: a group in brackets, a number, a letter or a command."""
    closing = text[-1:]
    if closing and closing in ")]}":
        opening, depth = "([{"[")]}".index(closing)], 0
        for position in range(len(text) - 1, -1, -1):
            depth += (text[position] == closing) - (text[position] == opening)
            if not depth:
                # \frac{1}{2}: both of its groups
                return text[position:] if closing != "}" else _before_group(text, position)
        return text
    return re.search(r"(?:\d[\d.]*|\\[A-Za-z]+|.|)$", text)[0]


def _before_group(text: str, position: int) -> str:
    rest = text[:position].rstrip()
    return (_before(rest) + text[position:]) if rest.endswith("}") else text[position:]
