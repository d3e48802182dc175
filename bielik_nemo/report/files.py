"""The JSON of a run's files, checked: every fault is one DataError with the file's name, and the line or key.

NaN and infinity, which Python writes but JSON lacks, count as null.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bielik_nemo.errors import DataError
from bielik_nemo.report import words


def read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file."""
    try:
        return parse(path, path.read_bytes()) if path.is_file() else {}
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def parse(path: Path, data: bytes, first_line: int = 1) -> dict[str, Any]:
    """The JSON object in `data`, which begins at line `first_line` of the file."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=lambda name: None)
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise DataError(f"{path}: line {line}: found a byte that is not UTF-8") from None
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"{path}: line {line}: not valid JSON: {error.msg}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: line {first_line}: found {type(value).__name__}, allowed: a JSON object")
    return value


def numbers_of(
    where: Path | str, table: Any, keys: Iterable[str], prefix: str = "", keep_null: bool = False
) -> dict[str, Any]:
    """The numbers that a JSON object has under these keys, and its nulls if asked to keep them."""
    if not isinstance(table or {}, dict):
        raise DataError(f"{where}: {prefix.rstrip('.')}: found {table!r:.80}, allowed: an object of numbers")
    found = {key: table[key] for key in keys if key in (table or {})}
    for key, value in found.items():
        if not is_number(value):
            raise DataError(f"{where}: {prefix}{key}: found {value!r:.80}, allowed: a number")
    return {key: value for key, value in found.items() if keep_null or value is not None}


def of_models(path: Path, content: dict[str, Any], key: str) -> dict[str, float]:
    """The number that `content[key]` has of each model, those of the pipeline first: `{"source": 2.5}`."""
    table = content.get(key)
    return numbers_of(path, table, words.ordered(table) if isinstance(table, dict) else (), f"{key}.")


def by_model(path: Path, content: dict[str, Any], key: str) -> dict[str, dict[str, float]]:
    """The numbers that `content[key]` has of each model: `{"source": {"pl": 2.5}}`; empty tables left out."""
    tables = content.get(key) or {}
    if not isinstance(tables, dict):
        raise DataError(f"{path}: {key}: found {tables!r:.80}, allowed: an object of {', '.join(words.ROLES)}")
    found = {name: tables[name] for name in words.ordered(tables) if tables[name]}
    numbers = {name: numbers_of(path, table, table, f"{key}.{name}.") for name, table in found.items()}
    return {name: each for name, each in numbers.items() if each}


def rows_of(path: Path, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The list of objects under a key; empty where there is none."""
    rows = content.get(key) or []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: {key}: found {rows!r:.80}, allowed: a list of {key}")
    return rows


def texts_of(path: Path | str, table: dict[str, Any], keys: Iterable[str], prefix: str = "") -> dict[str, str]:
    """The texts that a JSON object has under these keys."""
    found = {key: table[key] for key in keys if table.get(key) is not None}
    for key, value in found.items():
        if not isinstance(value, str):
            raise DataError(f"{path}: {prefix}{key}: found {value!r:.80}, allowed: text")
    return found


def needed(path: Path, table: dict[str, Any], keys: Iterable[str], prefix: str = "") -> None:
    """Check that all these numbers are there."""
    found = numbers_of(path, table, keys, prefix)
    for key in keys:
        if key not in found:
            raise DataError(f"{path}: {prefix}{key}: found nothing, allowed: a number")


def is_number(value: Any) -> bool:
    """Whether it is a number, or the null of one that JSON cannot say."""
    return value is None or type(value) in (int, float)
