"""Tokenizers side by side: the numbers of the stage `tokenizers`, and its part of the page and of the terminal.

What report.json has of it, where the stage has run:

    tokenizers    {name: {vocab_size, languages: {language: {characters_per_token, tokens_per_word, bytes_per_token,
                  tokens, documents}}}}
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from bielik_nemo.errors import DataError
from bielik_nemo.report import charts, markup
from bielik_nemo.report.files import numbers_of, read

_TOLD = {
    "characters_per_token": "Characters per token",
    "bytes_per_token": "Bytes per token",
    "tokens_per_word": "Tokens per word",
}
_COUNTS = ("tokens", "documents")


def collect(run_dir: Path) -> dict[str, Any]:
    """The numbers. Raises `DataError`."""
    path = run_dir / "tokenizers" / "metrics.json"
    found = {}
    for name, each in _objects(path, read(path).get("tokenizers"), "tokenizers").items():
        where = f"tokenizers.{name}."
        languages = _objects(path, each.get("languages"), f"{where}languages")
        found[name] = numbers_of(path, each, ["vocab_size"], where) | {
            "languages": {
                language: numbers_of(path, row, (*_TOLD, *_COUNTS), f"{where}languages.{language}.")
                for language, row in languages.items()
            }
        }
    return {"tokenizers": found}


def _objects(path: Path, value: Any, where: str) -> dict[str, dict[str, Any]]:
    if not isinstance(value or {}, dict) or not all(isinstance(each, dict) for each in (value or {}).values()):
        raise DataError(f"{path}: {where}: found {value!r:.80}, allowed: an object of objects")
    return value or {}


def section(numbers: dict[str, Any]) -> str:
    """A row for each language and tokenizer, as a card of the page."""
    found = numbers.get("tokenizers", {})
    if not found:
        return ""
    heads = ["Language", "Tokenizer", "Vocabulary", *_TOLD.values(), "Tokens", "Documents"]
    rows = [
        [
            escape(language),
            escape(name),
            _size(found[name]),
            *(f"{counts[key]:.2f}" if key in counts else "" for key in _TOLD),
            *(f"{counts[key]:,}" if key in counts else "" for key in _COUNTS),
        ]
        for language, name, counts in _rows(found)
    ]
    finest: dict[str, dict[str, float]] = {}
    for language, name, counts in _rows(found):
        if "tokens_per_word" in counts:
            finest.setdefault(language, {})[name] = counts["tokens_per_word"]
    plot = charts.bars(finest, "Tokens per word by tokenizer and language", "tokens per word") if finest else ""
    body = markup.figure("", "", plot, wide=True) if plot else ""
    body += markup.table(heads, ["text", *["number"] * 6], rows)
    return markup.section(
        "Tokenizers", "The fewer tokens a word takes, the more text fits a context and a second.", body
    )


def table(numbers: dict[str, Any]) -> Table | None:
    """The same for a console."""
    found = numbers.get("tokenizers", {})
    if not found:
        return None
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("language")
    shown.add_column("tokenizer")
    for heading in ("vocabulary", *(heading.lower().replace(" per ", "\nper ") for heading in _TOLD.values())):
        shown.add_column(heading, justify="right")
    for language, name, counts in _rows(found):
        measured = (f"{counts[key]:.2f}" if key in counts else "" for key in _TOLD)
        shown.add_row(Text(language), Text(name), _size(found[name]), *measured)
    return shown


def _rows(found: dict[str, dict[str, Any]]) -> list[tuple[str, str, dict[str, Any]]]:
    """Language, tokenizer, numbers: the languages together, so that their numbers stand below each other."""
    languages = dict.fromkeys(language for each in found.values() for language in each["languages"])
    return [
        (language or "unnamed", name, each["languages"][language])
        for language in languages
        for name, each in found.items()
        if language in each["languages"]
    ]


def _size(each: dict[str, Any]) -> str:
    return f"{each['vocab_size']:,}" if "vocab_size" in each else ""
