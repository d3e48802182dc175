"""Train the source model further, on a language mix of its own, before it is scored, cut and teaches.

Two uses: adapting a model to a language while text of its first one keeps it from forgetting that (arXiv 2410.18565),
and correcting a teacher to the text it will teach on (arXiv 2408.11796). Where it is one of `pipeline.stages`, every
later stage takes its model for the source.

Leaves `megatron/`, `architecture.json`, `metrics.jsonl`, `blend.json` (what it saw of each text) and NeMo's logs in
`nemo/`; until the pipeline has recorded it also `checkpoints/`, from which an interrupted run goes on.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fiddle as fdl
import nemo_run as run_

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.budget import flops_per_token
from bielik_nemo.config import Config
from bielik_nemo.data import mixture
from bielik_nemo.engine import best, distributed, training
from bielik_nemo.engine.distillation import train
from bielik_nemo.engine.pretraining import PretrainingModel
from bielik_nemo.engine.progress import read
from bielik_nemo.stages import teacher


def settings(config: Config) -> Config:
    """The configuration with this stage's length, rates and mix in their places."""
    own = config.pretrain
    optim = replace(
        config.optim,
        schedule=own.schedule,
        lr=own.lr,
        min_lr=own.min_lr,
        warmup_steps=own.warmup_steps,
        decay_steps=own.decay_steps,
    )
    data = replace(config.data, language_weights=own.language_weights or config.data.language_weights)
    return replace(config, optim=optim, data=data, trainer=replace(config.trainer, max_steps=own.max_steps))


def build(config: Config, run_dir: Path) -> run_.Partial:
    """The task as NeMo-Run knows it, like that of `stages.distill.build`."""
    config, here, source = settings(config), run_dir / "pretrain", run_dir / "import_hf"
    shape = Architecture.from_json(source / "architecture.json")
    model = run_.Config(
        PretrainingModel,
        architecture=run_.Config(Architecture, **asdict(shape)),
        dtype=config.model.dtype,
        seq_length=config.data.seq_length,
        recompute=config.trainer.recompute,
    )
    return run_.Partial(
        train,
        model=model,
        data=teacher.samples(config, run_dir, here / "index_cache"),
        trainer=training.trainer(
            config,
            here / "metrics.jsonl",
            training.held_out(config, run_dir / "data" / "held_out"),
            flops_per_token(None, shape, config.data.seq_length),
        ),
        log=training.logger(config, here),
        resume=training.resume(source / "megatron"),
        optim=training.optimizer(config),
    )


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Train, or go on training, then keep the weights: the last, or by `trainer.keep_best` the best.

    Raises:
        CheckpointError: the source or the run's own checkpoint cannot be loaded.
        GateError: the loss is not finite, or far above the recent ones.
    """
    here, mix = run_dir / "pretrain", teacher.mix(settings(config), run_dir)
    mixture.announce(mix)
    distributed.ensure_rendezvous()
    try:
        model = fdl.build(build(config, run_dir))()
        kept = best.leave(model, here)
    finally:
        distributed.reset_parallel_state()
    if distributed.rank() == 0:
        shutil.copyfile(run_dir / "import_hf" / "architecture.json", here / "architecture.json")
        artifacts.write_json(here / mixture.FILE, mixture.record(mix))
    before, last = _first_and_last(here / "metrics.jsonl")
    before, after = before["held_out_loss"], kept.loss if kept else last["held_out_loss"]
    ui.say(f"  held-out loss {before:.3f} -> {after:.3f} nats per token")
    measured = {"held_out_loss_before": before, "held_out_loss": after, "tokens": sum(part.tokens for part in mix)}
    return measured | {"step": kept.step if kept else last["step"]}


def _first_and_last(metrics: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    measured = [record for record in read(metrics) if "held_out_loss" in record]
    return measured[0], measured[-1]
