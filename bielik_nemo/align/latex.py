"""LaTeX that anybody wrote -> an expression of sympy, by math-verify's grammar, with no code made of it on the way.

math-verify's `parse` is not used: its expressions without LaTeX are Python's `eval` by design, its patterns go back on
themselves. And numbers: latex2sympy2_extended 1.11.0 reads each as `sympy.Number(text)`, which is `sympify`, which is
`eval` of the text as well. They are made of their digits here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from latex2sympy2_extended import NormalizationConfig, normalize_latex
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy
from math_verify.grader import should_treat_as_complex
from sympy import Float, Integer, Number

from bielik_nemo.align.bounds import refused

_NORMALIZATION = NormalizationConfig(basic_latex=True, malformed_operators=True, nits=True, boxed="none")


class _Reader(_Latex2Sympy):
    def parse_number(self, text: str) -> Number:
        """A number of the grammar: digits, commas between thousands, a point."""
        text = text.replace(",", "")
        return Integer(int(text)) if text.isdecimal() else Float(text)


@lru_cache(maxsize=256)  # a group's answers share a reference, and many of them an answer
def parsed(text: str) -> Any:
    """A text in the notation of `notation.read` as an expression; None where it is none, or too much to compute."""
    if not text or refused(text):
        return None
    try:
        return _Reader(is_real=not should_treat_as_complex(text)).parse(normalize_latex(text, _NORMALIZATION))
    except (
        Exception
    ):  # the grammar raises plain `Exception` where it does not fit, sympy anything where that makes no sense
        return None
