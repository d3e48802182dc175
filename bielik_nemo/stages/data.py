"""Text -> tokenised training and held-out sets (Megatron indexed datasets), split by document content.

Leaves `train.{bin,idx}`, `held_out.{bin,idx}` and `summary.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.data.text import Document, is_held_out, read_documents
from bielik_nemo.data.tokenizer import load_tokenizer
from bielik_nemo.engine import datasets
from bielik_nemo.errors import DataError


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Tokenise every document once, each followed by the end-of-text token.

    Raises:
        DataError: no text, not UTF-8, a tokenizer that is not the model's, or nothing on one side of the split.
    """
    here = run_dir / "data"
    architecture = Architecture.from_json(run_dir / "import_hf" / "architecture.json")
    tokenizer = load_tokenizer(run_dir / "import_hf" / "tokenizer", architecture.vocab_size)
    fraction, seed = config.data.held_out_fraction, config.run.seed
    summary: dict[str, Any] = {}

    def tokens(held_out: bool) -> Iterator[list[int]]:
        counts = summary["held_out" if held_out else "train"] = {"documents": 0, "characters": 0}
        for document in _documents(config):
            if is_held_out(document, fraction, seed) == held_out:
                counts["documents"] += 1
                counts["characters"] += len(document.text)
                yield [*tokenizer(document.text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    for name in ("train", "held_out"):
        count = datasets.write(here / name, tokens(name == "held_out"), architecture.vocab_size)
        summary[name]["tokens"] = count
        if count == 0:
            raise DataError(
                f"data.held_out_fraction={fraction}: no document falls on the {name} side; "
                "give more text or another fraction"
            )
        ui.say(f"  {name}: {summary[name]['documents']:,} documents, {count:,} tokens")
    artifacts.write_json(here / "summary.json", summary)
    return summary


def _documents(config: Config) -> Iterator[Document]:
    for source in config.data.sources:
        yield from read_documents(source.path, source.text_key)
