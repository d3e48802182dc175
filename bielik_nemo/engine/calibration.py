"""The calibration set: the tokens on which importance is measured and compensation is fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bielik_nemo.config import Config
from bielik_nemo.engine import datasets

FILE = "calibration.safetensors"


def prepare(config: Config, run_dir: Path) -> tuple[Tensor, dict[str, Any]]:
    """Token ids `[samples, seq_length]`, and what they were made of."""
    settings = config.prune.calibration
    length = settings.seq_length
    blocks = datasets.blocks(run_dir / "data" / "train", length, settings.samples * length)[:, :-1]
    return blocks, {"samples": len(blocks), "tokens": blocks.numel()}


def save(tokens: Tensor, directory: Path) -> None:
    """Keep the set beside the scores that were measured on it."""
    save_file({"tokens": tokens.to(torch.int32).contiguous()}, directory / FILE)


def load(run_dir: Path) -> Tensor:
    """The run's calibration set, token ids `[samples, seq_length]`."""
    return load_file(run_dir / "score" / FILE)["tokens"].long()
