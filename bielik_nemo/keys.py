"""Dotted keys of the configuration: which there are, what each may hold, the nearest right name, and strict reading.

All of it is derived from the type annotations of the dataclasses in config.py, so that messages cannot fall behind.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


@cache
def field_types(section: type) -> dict[str, Any]:
    """Type of every field of a dataclass, in order."""
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in fields(section)}


def without_none(kind: Any) -> Any:
    """`X` of `Optional[X]`; any other type as it is."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    return next(arg for arg in get_args(kind) if arg is not types.NoneType)


def dotted_keys(section: type, prefix: str = "") -> list[str]:
    """Every key that can be set, sections before what is in them: `run`, `run.name`, `run.dir`, ..."""
    found = []
    for name, kind in field_types(section).items():
        found.append(prefix + name)
        if is_dataclass(without_none(kind)):
            found += dotted_keys(without_none(kind), f"{prefix}{name}.")
    return found


def type_at(root: type, key: str) -> Any:
    """Type of `key`, where list items are written `data.sources.0.path` or `data.sources[0].path`; None if unknown."""
    kind: Any = root
    for part in re.sub(r"\[(\d+)\]", r".\1", key).split("."):
        kind = without_none(kind)
        if is_dataclass(kind):
            kind = field_types(kind).get(part)
        elif get_origin(kind) is list and part.isdigit():
            (kind,) = get_args(kind)
        elif get_origin(kind) is dict:
            _, kind = get_args(kind)
        else:
            return None
    return kind


def describe(kind: Any) -> str:
    """What a value of this type is, in words."""
    plain = without_none(kind)
    if is_dataclass(plain):
        words = f"the keys {', '.join(field_types(plain))}"
    elif get_origin(plain) is list:
        (item,) = get_args(plain)
        words = f"a list [...], each item {describe(item)}"
    elif get_origin(plain) is dict:
        words = f"names {{...}}, each with {describe(get_args(plain)[1])}"
    else:
        words = _WORDS[plain]
    return words if plain is kind else f"{words}, or null"


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean a or b?` with the right names that `name` was probably meant to be; empty when none is near.

    A neighbour in the same section comes first; then, a wrong or missing prefix (`lr` for `optim.lr`) counts less than
    a wrong last part.
    """
    last_of = {each: each.rpartition(".")[2] for each in names}
    section, _, last = name.rpartition(".")
    beside = [each for each in last_of if section and each.rpartition(".")[0] == section]
    near_beside = difflib.get_close_matches(last, map(last_of.get, beside), n=1, cutoff=0.7)
    same_last = [each for each in last_of if last_of[each] == last]
    near_last = difflib.get_close_matches(last, last_of.values(), n=1, cutoff=0.7)
    found = (
        [each for each in beside if last_of[each] in near_beside]
        or difflib.get_close_matches(name, same_last, n=1, cutoff=0.8)
        or same_last
        or difflib.get_close_matches(name, last_of, n=1, cutoff=0.75)
        or [each for each in last_of if last_of[each] in near_last]
    )
    return f"; did you mean {' or '.join(found)}?" if found else ""


def build(kind: Any, value: Any, key: str, problems: list[str]) -> Any:
    """`value` (plain dicts, lists, scalars) as an object of type `kind`; what is wrong with it goes to `problems`.

    Strict: no key may be missing or unknown, and no scalar is converted, except an integer to a float.
    """
    plain = without_none(kind)
    if value is None and plain is not kind:
        return None
    if is_dataclass(plain) and isinstance(value, dict):
        types_of, prefix = field_types(plain), f"{key}." if key else ""
        problems += [f"{prefix}{name}: unknown key{nearest(name, types_of)}" for name in value if name not in types_of]
        problems += [f"{prefix}{name}: missing" for name in types_of if name not in value]
        parts = {n: build(kind, value[n], prefix + n, problems) for n, kind in types_of.items() if n in value}
        return None if problems else plain(**parts)
    if get_origin(plain) is list and isinstance(value, list):
        (item,) = get_args(plain)
        return [build(item, each, f"{key}[{index}]", problems) for index, each in enumerate(value)]
    if get_origin(plain) is dict and isinstance(value, dict):
        _, item = get_args(plain)
        return {name: build(item, each, f"{key}.{name}", problems) for name, each in value.items()}
    if type(value) is plain:
        return value
    if plain is float and type(value) is int:
        return float(value)
    problems.append(f"{key}: found {value!r}, allowed: {describe(kind)}")
    return None
