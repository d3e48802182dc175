"""Text -> tokenised training and held-out sets (Megatron indexed datasets), split by document content.

Leaves `train.{bin,idx}`, `held_out/<language>.{bin,idx}` for every language that the sources name (`text` where none is
named) and `summary.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.config_prune import TextSource
from bielik_nemo.data.text import UNNAMED, is_held_out, read_documents
from bielik_nemo.data.tokenizer import encode, load_tokenizer
from bielik_nemo.engine import datasets
from bielik_nemo.errors import DataError


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Tokenise every document once, each followed by the end-of-text token.

    Raises:
        DataError: no text, not UTF-8, a tokenizer that is not the model's, or nothing on one side of the split, be it
            in one language.
    """
    here = run_dir / "data"
    architecture = Architecture.from_json(run_dir / "import_hf" / "architecture.json")
    tokenizer = load_tokenizer(run_dir / "import_hf" / "tokenizer", architecture.vocab_size)
    fraction, seed = config.data.held_out_fraction, config.run.seed

    def write(name: str, sources: list[TextSource], side: str, language: str = "") -> dict[str, int]:
        counts = {"documents": 0, "characters": 0}

        def tokens() -> Iterator[list[int]]:
            for source in sources:
                for document in read_documents(source.path, source.text_key):
                    if is_held_out(document, fraction, seed) == (side == "held_out"):
                        counts["documents"] += 1
                        counts["characters"] += len(document.text)
                        yield encode(tokenizer, document.text)

        counts["tokens"] = datasets.write(here / name, tokens(), architecture.vocab_size)
        if counts["tokens"] == 0:
            raise DataError(
                f"data.held_out_fraction={fraction}: no document{language and f' in language {language}'} falls on "
                f"the {side} side; give more text or another fraction"
            )
        ui.say(
            f"  {side}{language and f', {language}'}: {counts['documents']:,} documents, {counts['tokens']:,} tokens"
        )
        return counts

    (here / "held_out").mkdir()
    train = write("train", config.data.sources, "train")
    languages = _by_language(config.data.sources)
    held_out = {
        language: write(f"held_out/{language}", sources, "held_out", language if len(languages) > 1 else "")
        for language, sources in languages.items()
    }
    summary: dict[str, Any] = {
        "train": train,
        "held_out": {key: sum(counts[key] for counts in held_out.values()) for key in train},
    }
    if len(languages) > 1:
        summary["held_out_by_language"] = held_out
    artifacts.write_json(here / "summary.json", summary)
    return summary


def _by_language(sources: list[TextSource]) -> dict[str, list[TextSource]]:
    found: dict[str, list[TextSource]] = {}
    for source in sources:
        found.setdefault(source.language or UNNAMED, []).append(source)
    return found
