"""What a run costs, before anything is queued: parameters, tokens, FLOPs, memory per rank, disk.

Parameter and token counts are exact; everything else is an estimate by the rules that stand in its module.
"""

from __future__ import annotations

from dataclasses import dataclass

from bielik_nemo.architecture import Architecture
from bielik_nemo.budget.compute import flops_per_token
from bielik_nemo.budget.disk import disk_per_stage
from bielik_nemo.budget.memory import GIB
from bielik_nemo.config import Config
from bielik_nemo.validation.shapes import target_architecture

__all__ = ["GIB", "Budget", "estimate", "flops_per_token", "size_text"]


@dataclass(frozen=True)
class Budget:
    """What is known of a run before it runs.

    Attributes:
        config: of the run; where a search decides on the shape, with its first candidate as the target.
        source: shape of the source model.
        target: shape of the model that is left.
        disk: bytes of each stage that writes some.
    """

    config: Config
    source: Architecture
    target: Architecture
    disk: dict[str, float]


def estimate(config: Config, source: Architecture) -> Budget:
    """Budget of a run. Raises `ConfigError` when the target does not fit the source."""
    target = target_architecture(config, source) if "prune" in config.pipeline.stages else source
    return Budget(config, source, target, disk_per_stage(config, source, target))


def size_text(size: float) -> str:
    """Bytes as GiB, or as MiB when there are few."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB else f"{size / 2**20:,.1f} MiB"
