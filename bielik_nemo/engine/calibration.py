"""The calibration set: the tokens on which importance is measured and compensation is fitted.

The training text from its beginning, or a blend of sources of its own (see `data.blend`). Documents of a blend that
fall on the held-out side are left out. They are known by their text: the same text cut into other documents is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bielik_nemo import ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.config_prune import BlendSource
from bielik_nemo.data import blend, mixture
from bielik_nemo.data.text import UNNAMED, is_held_out, read_documents
from bielik_nemo.data.tokenizer import encode, load_tokenizer
from bielik_nemo.engine import datasets
from bielik_nemo.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "calibration.safetensors"


def prepare(config: Config, run_dir: Path) -> tuple[Tensor, dict[str, Any]]:
    """Token ids `[samples, seq_length]`, and what they were made of.

    The record: `samples`, `tokens`, `sources` (path, language, weight, share, samples, tokens, number of documents they
    were cut from and of held-out ones passed over) and `languages` (samples and tokens of each).

    Raises:
        DataError: there is too little text, or it cannot be read.
    """
    settings = config.prune.calibration
    with ui.progress("calibration set", settings.samples) as advance:
        if settings.sources:
            parts, rows = _blend(config, run_dir, advance)
        else:
            parts, rows = _training_text(config, run_dir, advance)
    remaining = [iter(part) for part in parts]
    drawn = [next(remaining[source]) for source in blend.order([len(part) for part in parts], config.run.seed)]
    languages: dict[str, dict[str, int]] = {}
    for row in rows:
        of = languages.setdefault(row["language"] or UNNAMED, {"samples": 0, "tokens": 0})
        of["samples"] += row["samples"]
        of["tokens"] += row["tokens"]
    record = {"samples": len(drawn), "tokens": sum(map(len, drawn)), "sources": rows, "languages": languages}
    return torch.from_numpy(np.stack(drawn)), record


def save(tokens: Tensor, directory: Path) -> None:
    """Keep the set beside the scores that were measured on it."""
    save_file({"tokens": tokens.to(torch.int32).contiguous()}, directory / FILE)


def load(run_dir: Path) -> Tensor:
    """The run's calibration set, token ids `[samples, seq_length]`."""
    return load_file(run_dir / "score" / FILE)["tokens"].long()


def _training_text(
    config: Config, run_dir: Path, on_sample: Callable[[], None]
) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Samples `[n, seq_length]` of each training set, in the shares of training, and its row of the record."""
    settings, parts, rows = config.prune.calibration, [], []
    for part in mixture.parts(config.data, run_dir, settings.samples, settings.seq_length):
        packed = blend.pack(datasets.documents(Path(part.prefix)), settings.seq_length, part.samples, on_sample)
        if len(packed.samples) < part.samples:
            text = f"the training text {part.name}"
            raise DataError(_too_small(config, "prune.calibration.samples", text, packed, part.samples))
        parts.append(packed.samples)
        rows.append(_row(BlendSource(path=part.name, language=part.language, weight=part.share), part.share, packed))
    return parts, rows


def _blend(
    config: Config, run_dir: Path, on_sample: Callable[[], None]
) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Samples `[n, seq_length]` of each source, and its row of the record."""
    settings = config.prune.calibration
    words = run_dir / config.tokenizer_stage
    tokenizer = load_tokenizer(words / "tokenizer", Architecture.from_json(words / "architecture.json").vocab_size)
    weights = [source.weight for source in settings.sources]
    parts, rows = [], []
    for index, wanted in enumerate(blend.shares(weights, settings.samples)):
        source = settings.sources[index]
        documents = _Documents(config, source, tokenizer)
        packed = blend.pack(documents, settings.seq_length, wanted, on_sample)
        if len(packed.samples) < wanted:
            key = f"prune.calibration.sources[{index}]"
            raise DataError(_too_small(config, key, source.path, packed, wanted, documents.held_out))
        parts.append(packed.samples)
        rows.append(_row(source, source.weight / sum(weights), packed, documents.held_out))
    return parts, rows


class _Documents:
    """The documents of a source as token ids, without those on the held-out side, which are counted."""

    def __init__(self, config: Config, source: BlendSource, tokenizer: PreTrainedTokenizerBase):
        self.config, self.source, self.tokenizer = config, source, tokenizer
        self.held_out = 0

    def __iter__(self) -> Iterator[list[int]]:
        fraction, seed = self.config.data.held_out_fraction, self.config.run.seed
        for document in read_documents(self.source.path, self.source.text_key):
            if is_held_out(document, fraction, seed):
                self.held_out += 1
            else:
                yield encode(self.tokenizer, document.text)


def _row(source: BlendSource, share: float, packed: blend.Packed, held_out: int = 0) -> dict[str, Any]:
    return {
        "path": source.path,
        "language": source.language,
        "weight": source.weight,
        "share": share,
        "samples": len(packed.samples),
        "tokens": packed.samples.size,
        "documents": packed.documents,
        "held_out_documents": held_out,
    }


def _too_small(config: Config, key: str, text: str, packed: blend.Packed, wanted: int, held_out: int = 0) -> str:
    passed_over = f" and {held_out:,} held-out ones, which are left out" if held_out else ""
    return (
        f"{key}: found {packed.tokens:,} tokens in {packed.documents:,} documents of {text}{passed_over}: "
        f"{len(packed.samples)} samples of prune.calibration.seq_length={config.prune.calibration.seq_length}, "
        f"wanted {wanted}; give more text, fewer prune.calibration.samples or shorter ones"
    )
