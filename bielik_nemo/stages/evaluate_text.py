"""What `evaluate` tells of a model on held-out text: by language and by source, in nats per token and bits per byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bielik_nemo import artifacts, ui
from bielik_nemo.config import Config
from bielik_nemo.data import mixture
from bielik_nemo.data.tokenizer import byte_lengths
from bielik_nemo.engine import datasets, held_out_text
from bielik_nemo.errors import DataError
from bielik_nemo.stages.subject import Subject


def held_out(config: Config, run_dir: Path, tokens: int | None = None) -> dict[str, Tensor]:
    """The held-out tokens `[n, s + 1]` by language: as many as `data.held_out_tokens`, or at most as given."""
    wanted = min(tokens or config.data.held_out_tokens, config.data.held_out_tokens)
    return datasets.by_language(run_dir / "data" / "held_out", config.data.seq_length, wanted)


def by_source(config: Config, run_dir: Path) -> dict[str, Tensor]:
    """The same by source, where a language has several; without those that do not fill one block."""
    directory = (run_dir / "data" / mixture.HELD_OUT_NAME).parent
    if not directory.is_dir():
        return {}
    sources = artifacts.read_json(run_dir / "data" / mixture.SUMMARY)["sources"]
    share, found = config.data.held_out_tokens // len(sources), {}
    for index, source in enumerate(sources):
        try:
            blocks = datasets.blocks(directory / f"{index:03d}", config.data.seq_length, share)
        except DataError:
            ui.say(f"  data.sources[{index}]: too little held-out text to tell of it alone")
        else:
            found[source["name"] if source["name"] not in found else f"{source['name']} ({index})"] = blocks
    return found


def measure(config: Config, run_dir: Path, source: Subject, subject: Subject, megatron: Any) -> dict[str, Any]:
    """Losses, bits per byte, and agreement with the source, of one model; nothing where there is no held-out text.

    A model with another tokenizer than the source's is measured on the same text in its own words; its loss is of other
    tokens and is not told.
    """
    if "data" not in config.pipeline.stages:
        return {}
    groups = {"language": held_out(config, run_dir), "source": by_source(config, run_dir)}
    ours, theirs = source.words(), subject.words()
    same = ours.get_vocab() == theirs.get_vocab()
    if not same:
        length = config.data.seq_length
        for parts in groups.values():
            parts |= {name: held_out_text.retokenised(blocks, ours, theirs, length) for name, blocks in parts.items()}
    lengths = torch.tensor(byte_lengths(theirs, subject.shape.vocab_size))
    found: dict[str, Any] = {}
    with ui.progress(f"held-out text, {subject.name}", _batches(config, *groups.values())) as advance:
        for group, parts in groups.items():
            if not parts:
                continue
            loss, losses = datasets.measure(megatron, parts, config.evaluate.batch_size, advance)
            bits = {name: held_out_text.bits_per_byte(losses[name], parts[name], lengths) for name in parts}
            if group == "language":
                whole = torch.cat(list(parts.values()))
                found |= {"held_out_loss": loss} if same else {}
                found["bits_per_byte"] = held_out_text.bits_per_byte(loss, whole, lengths)
            if len(parts) > 1:
                found |= {f"held_out_loss_by_{group}": losses} if same else {}
                found[f"bits_per_byte_by_{group}"] = bits
    return found | (_agreement(config, run_dir, source, subject, megatron) if same else {})


def _agreement(config: Config, run_dir: Path, source: Subject, subject: Subject, megatron: Any) -> dict[str, Any]:
    if subject == source:
        return {}
    parts = held_out(config, run_dir, config.evaluate.agreement_tokens)
    with ui.progress(f"agreement with the source, {subject.name}", 2 * _batches(config, parts)) as advance:
        near = held_out_text.near(
            megatron, source.load(config), parts, source.shape.vocab_size, config.evaluate.batch_size, advance
        )
    return {"agreement": near}


def _batches(config: Config, *groups: dict[str, Tensor]) -> int:
    return sum(-(-len(blocks) // config.evaluate.batch_size) for parts in groups for blocks in parts.values())
