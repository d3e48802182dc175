"""Go on distilling at a longer context: the student of `distill`, the same teacher, the same losses.

From here on the student has `distill_long.rotary_base`, where one is given, and a context of at least
`distill_long.seq_length` tokens; both stand in what is exported. A teacher that was trained on such a context stays as
it is. One of a shorter context teaches with the student's base, without having been trained for it. The gate measures
both on held-out text of this length; only `distill.gate_max_loss` judges, for scoring measured at another length.

Leaves what `distill` leaves.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nemo_run as run_

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.engine import later
from bielik_nemo.stages import distill, fit, source_stage
from bielik_nemo.stages import teacher as gates


def phase(config: Config, run_dir: Path) -> distill.Phase:
    """The phase that this stage is."""
    own = config.distill_long
    shapes = (run_.Config(later.shape, str(run_dir / name)) for name in ("distill", source_stage(config)))
    student, teacher = (
        run_.Config(change, each, own.seq_length, own.rotary_base)
        for change, each in zip((longer, long_enough), shapes, strict=True)
    )
    config = config.paced_by(own)
    gate = gates.gate(config, run_dir)
    gate.expected_loss = None  # it was measured at another length
    return distill.Phase("distill_long", config, "distill", student, teacher, gate)


def longer(shape: Architecture, seq_length: int, rotary_base: float | None) -> Architecture:
    """The shape with a context of at least so many tokens, and with another RoPE base where one is given."""
    context = max(shape.max_position_embeddings, seq_length)
    return replace(shape, rotary_base=rotary_base or shape.rotary_base, max_position_embeddings=context)


def long_enough(shape: Architecture, seq_length: int, rotary_base: float | None) -> Architecture:
    """The shape as it is where its context is enough, else `longer`."""
    enough = seq_length <= shape.max_position_embeddings
    return shape if enough else longer(shape, seq_length, rotary_base)


def build(config: Config, run_dir: Path) -> run_.Partial:
    """The task of this stage; see `distill.task`."""
    return distill.task(phase(config, run_dir), run_dir)


def run(config: Config, run_dir: Path, work: fit.Work | None = None) -> dict[str, Any]:
    """Carry this stage's phase out."""
    return distill.carry_out(phase(config, run_dir), run_dir, work)
