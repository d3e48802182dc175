"""Train the pruned model on the source's logits, through NeMo's trainer.

Leaves `megatron/` (the student's final weights), `architecture.json`, `metrics.jsonl`, NeMo's own logs and TensorBoard
files in `nemo/` and, until the pipeline has recorded it, `checkpoints/`, from which an interrupted run goes on.
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
from bielik_nemo.engine import checkpoint, distributed, training
from bielik_nemo.engine.distillation import DistillationModel, TeacherGate, train
from bielik_nemo.engine.progress import last_step


def build(config: Config, run_dir: Path) -> run_.Partial:
    """The task as NeMo-Run knows it: `llm.train` over NeMo's model, data, trainer, logger and optimiser configs.

    Its fields can be changed like those of NeMo's own recipes before it is run.
    """
    here, source, data = run_dir / "distill", run_dir / "import_hf", run_dir / "data"
    expected = artifacts.Manifest.read(run_dir / "score")
    shapes = {
        name: run_.Config(Architecture, **asdict(Architecture.from_json(run_dir / stage / "architecture.json")))
        for name, stage in (("student", "prune"), ("teacher", "import_hf"))
    }
    held_out = training.held_out(config, data / "held_out")
    return run_.Partial(
        train,
        model=run_.Config(
            DistillationModel,
            **shapes,
            teacher_checkpoint=str(source / "megatron"),
            gate=run_.Config(
                TeacherGate,
                held_out=held_out,
                max_loss=config.distill.gate_max_loss,
                expected_loss=expected.metrics["source_loss"] if expected else None,
                tolerance=config.distill.gate_tolerance,
            ),
            temperature=config.distill.temperature,
            dtype=config.model.dtype,
            seq_length=config.data.seq_length,
        ),
        data=training.data(config, data / "train", data / "held_out", source / "tokenizer", here / "index_cache"),
        trainer=training.trainer(config, here / "metrics.jsonl", held_out),
        log=training.logger(config, here),
        resume=training.resume(run_dir / "prune" / "megatron"),
        optim=training.optimizer(config),
    )


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Train, or go on training, then keep the student's weights.

    Raises:
        GateError: the teacher is not what it should be at step 0.
        CheckpointError: teacher, student or the run's own checkpoint cannot be loaded.
    """
    here = run_dir / "distill"
    distributed.ensure_rendezvous()
    try:
        student = fdl.build(build(config, run_dir))()
        checkpoint.save(student, here / "megatron")
    finally:
        distributed.reset_parallel_state()
    if distributed.rank() == 0:
        shutil.copyfile(run_dir / "prune" / "architecture.json", here / "architecture.json")
    record = last_step(here / "metrics.jsonl")
    ui.say(f"  KL {record['loss']:.4f} nats per token after {record['tokens']:,} tokens")
    return {"loss": record["loss"], "tokens": record["tokens"], "tokens_per_second": record["tokens_per_second"]}
