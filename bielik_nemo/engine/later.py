"""Values of a task that are known only where it runs: read from the run's files, or asked of the machine.

A task is made on the host that hands it over, which may have no GPU and none of the run's files yet. A field that holds
`run.Config` of one of these functions gets its value when the task is built, on each rank; until then it can be
replaced by a plain value like any other field.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine.datasets import prefixes
from bielik_nemo.errors import ConfigError


def gpu() -> bool:
    """Whether this machine has a GPU."""
    return torch.cuda.is_available()


def accelerator() -> str:
    """What Lightning calls the devices of this machine."""
    return "gpu" if gpu() else "cpu"


def loaders() -> int:
    """Processes that load data beside each rank."""
    return 2 if gpu() else 0


def peak(devices: int, tflops: float, flops_per_token: float) -> float:
    """Tokens per second at the full speed of all GPUs; 0: not known.

    Args:
        devices: in all.
        tflops: of each.
        flops_per_token: of a training step; 0: not known.
    """
    return devices * tflops * 1e12 / flops_per_token if flops_per_token and gpu() else 0.0


def tokens(sequences: int, seq_length: int, filled: float) -> int:
    """Tokens of text in a batch, in the mean."""
    return round(sequences * seq_length * filled)


def product(first: int, second: int) -> int:
    """Such as steps * batch."""
    return first * second


def part(whole: Any, name: str) -> Any:
    """An attribute of what is known later."""
    return getattr(whole, name)


def shape(directory: str) -> Architecture:
    """The shape of the model that a stage has left in its directory.

    Raises:
        DataError: it has left none.
    """
    return Architecture.from_json(Path(directory) / "architecture.json")


def hf(directory: str) -> str:
    """The Hugging Face directory in which a stage has left its model; "": it has left a Megatron checkpoint."""
    found = Path(directory) / "hf"
    return str(found) if found.is_dir() else ""


def megatron(directory: str) -> str:
    """The Megatron checkpoint that a stage has left; "": see `hf`."""
    return "" if hf(directory) else str(Path(directory) / "megatron")


def only_hf(directory: str) -> str:
    """The directory of a stage that has left its model as Hugging Face files; "": as a Megatron checkpoint."""
    return directory if hf(directory) else ""


def any_dataset(directory: str) -> list[str]:
    """One dataset of a directory, for what asks for one and draws nothing from it."""
    return [str(next(iter(prefixes(Path(directory)).values())))]


def steps(stage: str, found: int, warmup_steps: int) -> int:
    """The steps that a stage's data make.

    Raises:
        ConfigError: all of them would be warm-up.
    """
    if warmup_steps >= found:
        raise ConfigError(
            f"{stage}.warmup_steps: found {warmup_steps}, allowed: less than the {found} steps of {stage}"
        )
    return found
