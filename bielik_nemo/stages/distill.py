"""Train the pruned model on the source's logits, through NeMo's trainer.

The source runs beside it, or has left what it predicts: where `teacher` is one of `pipeline.stages`.

Leaves `megatron/` (the student's final weights), `architecture.json`, `metrics.jsonl`, `blend.json` (what it saw of
each text), NeMo's own logs and TensorBoard files in `nemo/` and, until the pipeline has recorded it, `checkpoints/`,
from which an interrupted run goes on.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fiddle as fdl
import nemo_run as run_

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.data import mixture
from bielik_nemo.engine import checkpoint, distributed, training
from bielik_nemo.engine.cached_distillation import CachedDataModule, CachedDistillationModel
from bielik_nemo.engine.criterion import Criterion
from bielik_nemo.engine.distillation import DistillationModel, train
from bielik_nemo.engine.progress import last_step
from bielik_nemo.engine.teacher_cache import TeacherCache
from bielik_nemo.stages import source_stage, teacher


def build(config: Config, run_dir: Path) -> run_.Partial:
    """The task as NeMo-Run knows it: `llm.train` over NeMo's model, data, trainer, logger and optimiser configs.

    Its fields can be changed like those of NeMo's own recipes before it is run.

    Raises:
        CheckpointError: the teacher's cache is not of this run.
    """
    here = run_dir / "distill"
    model, data = (_cached if "teacher" in config.pipeline.stages else _live)(config, run_dir)
    pruned, streamed = run_dir / "prune" / "megatron", run_dir / "prune" / "hf"
    if streamed.is_dir():
        model.student_hf = str(streamed)
    return run_.Partial(
        train,
        model=model,
        data=data,
        trainer=training.trainer(
            config, here / "metrics.jsonl", training.held_out(config, run_dir / "data" / "held_out")
        ),
        log=training.logger(config, here),
        resume=training.resume(None if streamed.is_dir() else pruned),
        optim=training.optimizer(config),
    )


def _live(config: Config, run_dir: Path) -> tuple[run_.Config, run_.Config]:
    """Student and teacher side by side, and the text."""
    model = run_.Config(
        DistillationModel,
        student=_shape(run_dir / "prune"),
        teacher=_shape(run_dir / source_stage(config)),
        teacher_checkpoint=str(run_dir / source_stage(config) / "megatron"),
        gate=teacher.gate(config, run_dir),
        criterion=_criterion(config, run_dir),
        dtype=config.model.dtype,
        seq_length=config.data.seq_length,
        recompute=config.trainer.recompute,
    )
    return model, teacher.samples(config, run_dir, run_dir / "distill" / "index_cache")


def _cached(config: Config, run_dir: Path) -> tuple[run_.Config, run_.Config]:
    """The student alone, and the text with what the stage `teacher` kept."""
    TeacherCache(run_dir / "teacher").check(**teacher.origin(config, run_dir))
    model = run_.Config(
        CachedDistillationModel,
        student=_shape(run_dir / "prune"),
        criterion=_criterion(config, run_dir),
        dtype=config.model.dtype,
        seq_length=config.data.seq_length,
        kind=config.teacher.kind,
        recompute=config.trainer.recompute,
    )
    data = teacher.samples(config, run_dir, run_dir / "distill" / "index_cache")
    fdl.update_callable(data, CachedDataModule)
    data.teacher_cache = str(run_dir / "teacher")
    return model, data


def _criterion(config: Config, run_dir: Path) -> run_.Config[Criterion]:
    return run_.Config(
        Criterion,
        weights=asdict(config.distill.weights),
        temperature=config.distill.temperature,
        beta=config.distill.jensen_shannon_beta,
        vocab_size=Architecture.from_json(run_dir / "prune" / "architecture.json").vocab_size,
    )


def _shape(directory: Path) -> run_.Config[Architecture]:
    return run_.Config(Architecture, **asdict(Architecture.from_json(directory / "architecture.json")))


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Train, or go on training, then keep the student's weights.

    Raises:
        GateError: the teacher is not what it should be at step 0.
        CheckpointError: teacher, its cache, student or the run's own checkpoint cannot be loaded.
    """
    here, mix = run_dir / "distill", teacher.mix(config, run_dir)
    mixture.announce(mix)
    distributed.ensure_rendezvous()
    try:
        student = fdl.build(build(config, run_dir))()
        checkpoint.save(student, here / "megatron")
    finally:
        distributed.reset_parallel_state()
    if distributed.rank() == 0:
        shutil.copyfile(run_dir / "prune" / "architecture.json", here / "architecture.json")
        artifacts.write_json(here / mixture.FILE, mixture.record(mix))
    record = last_step(here / "metrics.jsonl")
    ui.say(
        f"  loss {record['loss']:.4f} nats per token after {record['tokens']:,} tokens; "
        f"top word the teacher's for {record['agreement']:.1%} of the last"
    )
    return {key: record[key] for key in ("loss", "agreement", "tokens", "tokens_per_second")}
