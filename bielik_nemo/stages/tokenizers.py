"""Tokenizers side by side on the run's text, by language: the model's own as `source`, and `tokenizers.compared`.

Needs no other stage, so that `bielik-nemo tokenizers` answers before anything is trained. Leaves `metrics.json`.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from bielik_nemo import artifacts, ui
from bielik_nemo.config import Config
from bielik_nemo.data.builtin import resolve_tokenizer
from bielik_nemo.data.fertility import Fertility
from bielik_nemo.data.text import UNNAMED, read_documents
from bielik_nemo.data.tokenizer import open_tokenizer

OWN = "source"
"""What the model's own tokenizer is called."""


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Cut the first documents of every source with every tokenizer, and show the table.

    Raises:
        CheckpointError: a built-in model cannot be made.
        DataError: a tokenizer or a text cannot be read.
    """
    here = run_dir / "tokenizers"
    found: dict[str, dict[str, Any]] = {}
    compared = {OWN: config.model.source} | config.tokenizers.compared
    with ui.progress("tokenizers", len(compared)) as advance:
        for name, path in compared.items():
            tokenizer = open_tokenizer(resolve_tokenizer(path, here / "builtin"))
            languages: dict[str, Fertility] = {}
            for source in config.data.sources:
                documents = islice(read_documents(source.path, source.text_key), config.tokenizers.documents)
                languages.setdefault(source.language or UNNAMED, Fertility()).add(tokenizer, documents)
            records = {language: counts.record() for language, counts in languages.items()}
            found[name] = {"vocab_size": len(tokenizer), "languages": records}
            advance(name)
    artifacts.write_json(here / "metrics.json", {"tokenizers": found})
    measured = {name: each["languages"] for name, each in found.items()}
    return {name: {key: each["characters_per_token"] for key, each in by.items()} for name, by in measured.items()}
