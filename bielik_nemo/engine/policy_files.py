"""A rollout's answers on disk, with all that further updates need of them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from bielik_nemo.engine.policy_data import Sampled

RAGGED = ("prompt", "answer", "old", "reference")


def save(path: Path, groups: Sequence[Sequence[Sampled]], told: dict[str, float]) -> None:
    """Write answers, whole or not at all.

    Args:
        path: of the file.
        groups: answers by prompt.
        told: numbers of the rollout.
    """
    every = [each for group in groups for each in group]
    arrays = {name: np.concatenate([getattr(each, name) for each in every]) for name in RAGGED}
    arrays |= {f"{name}_lengths": np.array([len(getattr(each, name)) for each in every]) for name in RAGGED}
    arrays["advantage"] = np.array([each.advantage for each in every])
    partial = path.with_name(path.name + ".partial")
    save_file(arrays, partial, metadata={"told": json.dumps(told)})
    os.replace(partial, path)


def load(path: Path, group_size: int) -> tuple[list[list[Sampled]], dict[str, float]]:
    """What `save` wrote: answers by prompt, `group_size` to each, and the numbers."""
    with safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}
        told = json.loads(file.metadata()["told"])
    parts = [np.split(arrays[name], np.cumsum(arrays[f"{name}_lengths"])[:-1]) for name in RAGGED]
    every = [Sampled(*each) for each in zip(*parts, arrays["advantage"].tolist(), strict=True)]
    return [every[start : start + group_size] for start in range(0, len(every), group_size)], told
