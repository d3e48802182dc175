"""Train the pruned model on the source's logits, through NeMo's trainer.

The source runs beside it, or has left what it predicts: where `teacher` is one of `pipeline.stages`.

Leaves `megatron/` (the student's final weights), `architecture.json`, `metrics.jsonl`, `blend.json` (what it saw of
each text), NeMo's own logs and TensorBoard files in `nemo/` and, until the pipeline has recorded it, `checkpoints/`,
from which an interrupted run goes on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fiddle as fdl
import nemo_run as run_

from bielik_nemo import ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.budget import flops_per_token
from bielik_nemo.config import Config
from bielik_nemo.engine import later
from bielik_nemo.engine.cached_distillation import CachedDataModule, CachedDistillationModel
from bielik_nemo.engine.criterion import Criterion
from bielik_nemo.engine.distillation import DistillationModel, TeacherGate
from bielik_nemo.engine.progress import last_step
from bielik_nemo.engine.teacher_cache import TeacherCache
from bielik_nemo.losses import PARTS
from bielik_nemo.stages import fit, source_stage, teacher
from bielik_nemo.stages.nodes import known


@dataclass(frozen=True)
class Phase:
    """What the phases of distillation differ in.

    Attributes:
        name: of the stage.
        config: with the phase's own settings in their places.
        begins: stage with whose model the student begins.
        student: shape of the student, read when it is built.
        teacher: shape in which the source teaches, likewise.
        gate: what the source must show before it teaches.
        cached: whether the stage `teacher` has run the source for it.
    """

    name: str
    config: Config
    begins: str
    student: run_.Config[Architecture]
    teacher: run_.Config[Architecture]
    gate: run_.Config[TeacherGate]
    cached: bool = False


def phase(config: Config, run_dir: Path) -> Phase:
    """The phase that this stage is."""
    shapes = (run_.Config(later.shape, str(run_dir / name)) for name in ("prune", source_stage(config)))
    gate, cached = teacher.gate(config, run_dir), "teacher" in config.pipeline.stages
    return Phase("distill", config, "prune", *shapes, gate, cached)


def build(config: Config, run_dir: Path) -> run_.Partial:
    """The task of this stage; see `task`."""
    return task(phase(config, run_dir), run_dir)


def task(phase: Phase, run_dir: Path) -> run_.Partial:
    """Student, teacher or what it left, and text as a task; see `fit.task`."""
    config = phase.config
    model, data = (_cached if phase.cached else _live)(phase, run_dir)
    begins = str(run_dir / phase.begins)
    model.student_hf, weights = run_.Config(later.hf, begins), run_.Config(later.megatron, begins)
    restored = weights
    if config.distill.weights.hidden_state:
        model.student_megatron, restored = weights, None
    flops = run_.Config(flops_per_token, None if phase.cached else phase.teacher, phase.student, config.data.seq_length)
    return fit.task(config, run_dir, phase.name, model, data, restored, flops)


def _live(phase: Phase, run_dir: Path) -> tuple[run_.Config, run_.Config]:
    """Student and teacher side by side, and the text."""
    config = phase.config
    model = run_.Config(
        DistillationModel,
        student=phase.student,
        teacher=phase.teacher,
        teacher_checkpoint=str(run_dir / source_stage(config) / "megatron"),
        gate=phase.gate,
        criterion=_criterion(phase),
        hidden_weight=config.distill.weights.hidden_state,
        hidden_layers=config.distill.hidden_layers,
        dtype=config.model.dtype,
        seq_length=config.data.seq_length,
        recompute=config.trainer.recompute,
    )
    return model, fit.samples(config, run_dir, run_dir / phase.name / "index_cache")


def _cached(phase: Phase, run_dir: Path) -> tuple[run_.Config, run_.Config]:
    """The student alone, and the text with what the stage `teacher` kept."""
    config = phase.config
    model = run_.Config(
        CachedDistillationModel,
        student=phase.student,
        criterion=_criterion(phase),
        dtype=config.model.dtype,
        seq_length=config.data.seq_length,
        kind=config.teacher.kind,
        recompute=config.trainer.recompute,
    )
    data = fit.samples(config, run_dir, run_dir / phase.name / "index_cache")
    fdl.update_callable(data, CachedDataModule)
    data.teacher_cache = str(run_dir / "teacher")
    return model, data


def check_cache(config: Config, run_dir: Path) -> None:
    """Raise CheckpointError where the teacher's cache is not of this run."""
    TeacherCache(run_dir / "teacher").check(**teacher.origin(config, run_dir))


def _criterion(phase: Phase) -> run_.Config[Criterion]:
    settings = phase.config.distill
    return run_.Config(
        Criterion,
        weights={name: weight for name, weight in asdict(settings.weights).items() if name in PARTS},
        temperature=settings.temperature,
        beta=settings.jensen_shannon_beta,
        vocab_size=run_.Config(later.part, phase.student, "vocab_size"),
    )


def run(config: Config, run_dir: Path, work: fit.Work | None = None) -> dict[str, Any]:
    """Carry this stage's phase out."""
    return carry_out(phase(config, run_dir), run_dir, work)


def carry_out(phase: Phase, run_dir: Path, work: fit.Work | None = None) -> dict[str, Any]:
    """Train, or go on training, then keep the student's weights: the last, or by `trainer.keep_best` the best.

    Raises:
        GateError: the teacher is not what it should be at step 0.
        CheckpointError: teacher, its cache, student or the run's own checkpoint cannot be loaded.
    """
    if phase.cached:
        check_cache(phase.config, run_dir)
    work, student = work or task(phase, run_dir), known(phase.student)
    kept = fit.on_text(work, phase.config, run_dir, phase.name, student)
    record = last_step(run_dir / phase.name / "metrics.jsonl")
    ui.say(
        f"  loss {record['loss']:.4f} nats per token after {record['tokens']:,} tokens; "
        f"top word the teacher's for {record['agreement']:.1%} of the last"
    )
    measured = {key: record[key] for key in ("loss", "agreement", "tokens", "tokens_per_second", "peak_memory_gib")}
    return measured | {"step": kept.step if kept else record["step"]}
