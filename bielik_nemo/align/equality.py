"""Whether two expressions differ, told by their values, before an algebra system is asked whether they are equal.

Most wrong answers are wrong in the first digit; to simplify their difference with the right one may take minutes, for
an answer that is made for it all day. So expressions are evaluated first, with a number for each symbol: where the
values differ, the expressions do. Only what agrees is worth algebra.
"""

from __future__ import annotations

import cmath
import math
import zlib
from collections.abc import Sequence
from typing import Any

from sympy import Basic, Eq, Expr, FiniteSet, Float, Function, Interval, MatrixBase, Pow, Set, Tuple, preorder_traversal
from sympy.core.relational import Relational
from sympy.logic.boolalg import Boolean

_CLOSE = 1e-5
"""Below which values may be those of equal expressions: decimals are compared to six places."""
_DIGITS = 20
_SMALL = 60
"""Nodes of an expression that algebra may be asked about although its values say nothing."""
_DEGREE, _SOLVABLE = 3, 30
"""Degree and nodes of an equation that may be solved to compare it with another one."""


def differ(wanted: Any, found: Any) -> bool | None:
    """Whether two expressions of sympy surely differ; None where that could take long to find out, or for ever."""
    if isinstance(found, Eq) and not isinstance(wanted, Relational):
        found = found.rhs
    if isinstance(wanted, Eq) and isinstance(found, Expr):
        wanted = wanted.rhs
    if isinstance(wanted, Expr) and isinstance(found, Expr):
        return _values_differ([wanted], [found])
    if isinstance(wanted, (Expr, Set, Tuple)) and isinstance(found, (Expr, Set, Tuple)):
        parts = [_parts(each) for each in (wanted, found)]
        if None not in parts:
            return len(parts[0]) != len(parts[1]) or _values_differ(*parts)
        if isinstance(wanted, Expr) or isinstance(found, Expr):
            return True  # a number is no interval, nor a union of some
    if isinstance(wanted, MatrixBase) or isinstance(found, MatrixBase):
        if not isinstance(wanted, MatrixBase) or not isinstance(found, MatrixBase) or wanted.shape != found.shape:
            return True
        return any(_values_differ([a], [b]) for a, b in zip(wanted.flat(), found.flat(), strict=True))
    return None if _large(found) or (isinstance(found, Boolean) and _hard_to_solve(found)) else False


def _parts(each: Basic) -> Sequence[Expr] | None:
    """The elements of a list, a set, or one expression; the ends of an interval."""
    if isinstance(each, Expr):
        return [each]
    if isinstance(each, Interval):
        return [each.start, each.end]
    if isinstance(each, (FiniteSet, Tuple)):
        elements = [part.rhs if isinstance(part, Eq) else part for part in each.args]
        return elements if all(isinstance(part, Expr) for part in elements) else None
    return None


def _values_differ(wanted: Sequence[Expr], found: Sequence[Expr]) -> bool | None:
    """Whether some element has no like on the other side; None where one has no value, and is not small."""
    values = [[_value(each) for each in side] for side in (wanted, found)]
    if any(value is None for side in values for value in side):
        return None if any(map(_large, found)) else False
    return any(not any(_close(a, b) for b in side) for elements, side in (values, values[::-1]) for a in elements)


def _value(expression: Expr) -> complex | None:
    """Its value where every symbol has one of its own, by its name; infinity beyond floats; None where it has none."""
    symbols = expression.free_symbols
    numbers = {symbol: Float(0.3 + 1.4 * zlib.crc32(symbol.name.encode()) / 2**32) for symbol in symbols}
    try:
        value = complex(expression.evalf(_DIGITS, subs=numbers))
    except OverflowError:
        return complex(math.inf)
    except (TypeError, ArithmeticError):
        return None
    return None if cmath.isnan(value) else value


def _close(a: complex, b: complex) -> bool:
    if cmath.isinf(a) or cmath.isinf(b):
        return cmath.isinf(a) and cmath.isinf(b)
    return abs(a - b) <= _CLOSE * max(1, abs(a), abs(b))


def _hard_to_solve(relation: Basic) -> bool:
    """Whether an equation or inequality is of another kind than those of low degree, or a long one."""
    powers = [power.exp for power in relation.atoms(Pow)]
    return (
        bool(relation.atoms(Function))
        or any(not exponent.is_Rational or abs(exponent) > _DEGREE for exponent in powers)
        or sum(1 for _ in preorder_traversal(relation)) > _SOLVABLE
    )


def _large(expression: Basic) -> bool:
    return sum(1 for _ in preorder_traversal(expression)) > _SMALL
