"""Tokenizers side by side, as a terminal table: how finely each cuts the text of each language."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text


def tokenizers_table(tokenizers: dict[str, dict[str, Any]]) -> Table:
    """A row for each tokenizer and language, the languages together, so that their numbers stand below each other.

    Args:
        tokenizers: as in tokenizers/metrics.json.
    """
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    found.add_column("language")
    found.add_column("tokenizer")
    for heading in ("vocabulary", "characters\nper token", "bytes\nper token", "tokens\nper word"):
        found.add_column(heading, justify="right")
    languages = dict.fromkeys(language for each in tokenizers.values() for language in each["languages"])
    for language in languages:
        for name, each in tokenizers.items():
            if counts := each["languages"].get(language):
                measured = (counts[key] for key in ("characters_per_token", "bytes_per_token", "tokens_per_word"))
                found.add_row(Text(language), Text(name), f"{each['vocab_size']:,}", *(f"{n:.2f}" for n in measured))
    return found
