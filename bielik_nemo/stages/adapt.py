"""The first stage of a model's way to another tokenizer: train its embeddings and outermost layers, freeze the others.

As in Bielik-PL-Minitron (arXiv 2604.10799): both embedding matrices, the 2 lowest and the 2 highest layers. The stage
`pretrain` is the second one, in which the whole model is trained. Leaves what `pretrain` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fiddle as fdl
import nemo_run as run_

from bielik_nemo.config import Config
from bielik_nemo.engine.outermost import OutermostStrategy
from bielik_nemo.stages import fit, pretrain


def build(config: Config, run_dir: Path) -> run_.Partial:
    """The task as NeMo-Run knows it; see `stages.pretrain.build`."""
    work = pretrain.build(config, run_dir, "adapt")
    work.model.boundary_layers = config.adapt.boundary_layers
    fdl.update_callable(work.trainer.strategy, OutermostStrategy)
    return work


def run(config: Config, run_dir: Path, work: fit.Work | None = None) -> dict[str, Any]:
    """Train, or go on training; see `stages.pretrain.run`."""
    return pretrain.run(config, run_dir, work or build(config, run_dir), "adapt")
