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
from bielik_nemo.stages import distill, source_stage
from bielik_nemo.stages import teacher as gates


def phase(config: Config, run_dir: Path) -> distill.Phase:
    """The phase that this stage is."""
    own = config.distill_long

    def longer(shape: Architecture) -> Architecture:
        context = max(shape.max_position_embeddings, own.seq_length)
        return replace(shape, rotary_base=own.rotary_base or shape.rotary_base, max_position_embeddings=context)

    student, teacher = (
        Architecture.from_json(run_dir / name / "architecture.json") for name in ("distill", source_stage(config))
    )
    if own.seq_length > teacher.max_position_embeddings:
        teacher = longer(teacher)
    config = config.paced_by(own)
    gate = gates.gate(config, run_dir)
    gate.expected_loss = None  # it was measured at another length
    return distill.Phase("distill_long", config, "distill", longer(student), teacher, gate)


def build(config: Config, run_dir: Path) -> run_.Partial:
    """The task of this stage; see `distill.task`."""
    return distill.task(phase(config, run_dir), run_dir)


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Carry this stage's phase out."""
    return distill.carry_out(phase(config, run_dir), run_dir)
