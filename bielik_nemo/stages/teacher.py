"""Run the source model once over the training samples and keep what students need of its predictions.

Leaves `shards/` and `teacher.json` (see engine/teacher_cache.py), from which `distill` then trains without a teacher in
memory, as often as one likes.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import fiddle as fdl
import nemo_run as run_

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.artifacts import Manifest
from bielik_nemo.config import Config
from bielik_nemo.data import mixture
from bielik_nemo.engine import checkpoint, distributed, model, teacher_pass, training
from bielik_nemo.engine.distillation import TeacherGate
from bielik_nemo.engine.teacher_cache import Contents
from bielik_nemo.errors import DataError
from bielik_nemo.stages import fit, source_stage


def gate(config: Config, run_dir: Path) -> run_.Config[TeacherGate]:
    """What the teacher must show on held-out text before it teaches."""
    return run_.Config(
        TeacherGate,
        held_out=training.held_out(config, run_dir / "data" / "held_out"),
        max_loss=config.distill.gate_max_loss,
        expected_loss=run_.Config(source_loss, str(run_dir / "score")),
        tolerance=config.distill.gate_tolerance,
    )


def source_loss(directory: str) -> float | None:
    """What the stage `score` measured of the source; None: it has not run."""
    found = Manifest.read(Path(directory))
    return found.metrics["source_loss"] if found else None


def origin(config: Config, run_dir: Path) -> dict[str, Any]:
    """What this run keeps of the teacher, and what that is made of: the fields of `Contents` that a student depends on.

    Raises:
        DataError: a stage that they are made of has not finished.
    """
    source, data = _manifest(run_dir / source_stage(config)), _manifest(run_dir / "data")
    imported = _manifest(run_dir / config.tokenizer_stage)
    tokenizer = {name: entry for name, entry in imported.outputs.items() if name.startswith("tokenizer/")}
    text = {name: entry for name, entry in data.outputs.items() if name.startswith("train/")}
    shares = [part.share for part in fit.mix(config, run_dir)]
    sampled = config.teacher.kind == "sampled"
    return {
        "kind": config.teacher.kind,
        "ids_per_token": config.teacher.samples_per_token if sampled else config.teacher.top_k,
        "temperature": config.distill.temperature,
        "samples": config.trainer.max_steps * config.data.global_batch_size,
        "seq_length": config.data.seq_length,
        "vocab_size": Architecture.from_json(run_dir / source_stage(config) / "architecture.json").vocab_size,
        "seed": config.run.seed,
        "dtype": config.model.dtype,
        "teacher": source.fingerprint,  # of what the model was made of; the files depend on the layout
        "tokenizer": artifacts.content_digest(tokenizer),
        "data": artifacts.digest([artifacts.content_digest(text), shares]),
        "separate_documents": config.data.separate_documents,
    }


def _manifest(directory: Path) -> Manifest:
    found = Manifest.read(directory)
    if found is None:
        raise DataError(f"{directory}: has no manifest; run `bielik-nemo {directory.name}` first")
    return found


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Check the teacher, then write the shards that are missing.

    Raises:
        GateError: the teacher is not what it should be, or a logit is not finite.
        CheckpointError: the teacher cannot be loaded.
    """
    here, source = run_dir / "teacher", run_dir / source_stage(config)
    architecture = Architecture.from_json(source / "architecture.json")
    tp, pp, size = config.parallel.tp, config.parallel.pp, config.data.micro_batch_size
    wanted = Contents(**origin(config, run_dir))
    mixture.announce(fit.mix(config, run_dir))
    with distributed.model_parallel(tp, pp, config.run.seed):
        megatron = model.build(model.gpt_config(architecture, tp=tp, pp=pp, dtype=config.model.dtype), architecture)
        checkpoint.load(megatron, source / "megatron")
        loss = fdl.build(gate(config, run_dir))(megatron)
        data = fdl.build(fit.samples(config, run_dir, here / "index_cache"))
        data.build(config.trainer.max_steps, 1, 0, 0)
        shards = teacher_pass.to_do(here, wanted)
        tokens, start = sum(map(len, shards)) * wanted.seq_length, time.monotonic()
        with ui.progress("teacher", sum(-(-len(shard) // size) for shard in shards)) as advance:
            teacher_pass.fill(megatron, data._train_ds, here, wanted, shards, size, advance)
        rate = tokens * config.world_size / (tp * pp) / (time.monotonic() - start)
        bytes_per_token = teacher_pass.finish(here, wanted)
    ui.say(f"  {wanted.samples * wanted.seq_length:,} tokens at {bytes_per_token:.1f} bytes, {rate:.0f} tokens/s")
    return {
        "teacher_loss": loss,
        "tokens": wanted.samples * wanted.seq_length,
        "bytes_per_token": bytes_per_token,
        "tokens_per_second": rate,
    }
