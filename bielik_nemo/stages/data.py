"""Text -> tokenised training and held-out sets (Megatron indexed datasets), split by document content.

Leaves `train/<number>.{bin,idx}` for every source, `held_out/<language>.{bin,idx}` for every language that the sources
name (`text` where none is named), the same documents in `held_out/sources/<number>.{bin,idx}` where a language has
several sources, and `summary.json`. How the sources are mixed is the business of who trains on them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.data import mixture
from bielik_nemo.data.text import UNNAMED, Document, is_held_out, read_documents
from bielik_nemo.data.tokenizer import encode_all, load_tokenizer
from bielik_nemo.engine import datasets
from bielik_nemo.errors import DataError


class _Side:
    """Counts what is added to one dataset."""

    def __init__(self, add: Callable[[list[int]], None]):
        self.add = add
        self.counts = {"documents": 0, "characters": 0, "tokens": 0}

    def __call__(self, document: Document, ids: list[int]) -> None:
        self.add(ids)
        for key, count in zip(self.counts, (1, len(document.text), len(ids)), strict=True):
            self.counts[key] += count


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Read every source and tokenise every document once, each followed by the end-of-text token.

    Raises:
        DataError: no text, not UTF-8, a tokenizer that is not the model's, a source of which nothing is left for
            training, or a language of which nothing is held out.
    """
    here = run_dir / "data"
    words = run_dir / config.tokenizer_stage
    architecture = Architecture.from_json(words / "architecture.json")
    tokenizer = load_tokenizer(words / "tokenizer", architecture.vocab_size)
    for name in ("train", "held_out"):
        (here / name).mkdir()
    sources, fraction, seed = config.data.sources, config.data.held_out_fraction, config.run.seed
    languages = dict.fromkeys(source.language or UNNAMED for source in sources)
    train = []
    with contextlib.ExitStack() as files, ui.progress("documents") as advance:

        def dataset(name: str) -> _Side:
            return _Side(files.enter_context(datasets.writer(here / name, architecture.vocab_size)))

        held_out = {language: dataset(f"held_out/{language}") for language in languages}
        by_source = len(sources) > len(languages)
        if by_source:
            (here / mixture.HELD_OUT_NAME.format(0)).parent.mkdir()
        for index, source in enumerate(sources):
            train.append(dataset(mixture.NAME.format(index)))
            aside = [held_out[source.language or UNNAMED]]
            aside += [dataset(mixture.HELD_OUT_NAME.format(index))] if by_source else []
            for document, ids in encode_all(tokenizer, read_documents(source.path, source.text_key)):
                for side in aside if is_held_out(document, fraction, seed) else train[-1:]:
                    side(document, ids)
                advance()
        sides = {f"of data.sources[{index}] ": side for index, side in enumerate(train)}
        for where, side in [*sides.items(), *((f"in language {name} ", side) for name, side in held_out.items())]:
            if not side.counts["documents"]:
                raise DataError(
                    f"data.held_out_fraction={fraction}: no document {where if len(sides) > 1 else ''}falls on the "
                    f"{'train' if side in train else 'held_out'} side; give more text or another fraction"
                )

    def total(sides: list[_Side]) -> dict[str, int]:
        return {key: sum(side.counts[key] for side in sides) for key in sides[0].counts}

    by_language = {name: side.counts for name, side in held_out.items()}
    summary: dict[str, Any] = {
        "train": total(train),
        "sources": [
            {"name": Path(source.path).name, "language": source.language} | side.counts
            for source, side in zip(sources, train, strict=True)
        ],
        "held_out": total(list(held_out.values())),
    }
    if len(languages) > 1:
        summary["held_out_by_language"] = by_language
    for name in ("train", "held_out"):
        ui.say(f"  {name}: {summary[name]['documents']:,} documents, {summary[name]['tokens']:,} tokens")
    artifacts.write_json(here / mixture.SUMMARY, summary)
    return summary
