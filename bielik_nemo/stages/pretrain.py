"""Train the source model further, on a language mix of its own, before it is scored, cut and teaches.

Uses: adapting a model to a language while text of its first one keeps it from forgetting that (arXiv 2410.18565),
correcting a teacher to the text it will teach on (arXiv 2408.11796), and the second stage of a model's way to another
tokenizer (arXiv 2604.10799). Where it is one of `pipeline.stages`, every
later stage takes its model for the source.

Leaves `megatron/`, `architecture.json`, `metrics.jsonl`, `blend.json` (what it saw of each text) and NeMo's logs in
`nemo/`; until the pipeline has recorded it also `checkpoints/`, from which an interrupted run goes on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nemo_run as run_

from bielik_nemo import ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.budget import flops_per_token
from bielik_nemo.config import Config
from bielik_nemo.engine import later
from bielik_nemo.engine.pretraining import PretrainingModel
from bielik_nemo.engine.progress import last_step, read
from bielik_nemo.stages import fit, source_stage


def settings(config: Config, stage: str) -> Config:
    """The configuration with the stage's length, rates and mix in their places."""
    own = getattr(config, stage)
    return config.paced_by(replace(own, language_weights=own.language_weights or config.data.language_weights))


def build(config: Config, run_dir: Path, stage: str = "pretrain") -> run_.Partial:
    """The task as NeMo-Run knows it, like that of `stages.distill.build`; of `adapt` too (see adapt.py)."""
    config, source = settings(config, stage), run_dir / source_stage(config, stage)
    shape = run_.Config(later.shape, str(source))
    model = run_.Config(
        PretrainingModel,
        architecture=shape,
        dtype=config.model.dtype,
        seq_length=config.data.seq_length,
        recompute=config.trainer.recompute,
    )
    data = fit.samples(config, run_dir, run_dir / stage / "index_cache")
    flops = run_.Config(flops_per_token, None, shape, config.data.seq_length)
    return fit.task(config, run_dir, stage, model, data, run_.Config(later.megatron, str(source)), flops)


def run(config: Config, run_dir: Path, work: fit.Work | None = None, stage: str = "pretrain") -> dict[str, Any]:
    """Train, or go on training, then keep the weights: the last, or by `trainer.keep_best` the best.

    Raises:
        CheckpointError: the source or the run's own checkpoint cannot be loaded.
        GateError: the loss is not finite, or far above the recent ones.
    """
    shape = Architecture.from_json(run_dir / source_stage(config, stage) / "architecture.json")
    work = work or build(config, run_dir, stage)
    kept = fit.on_text(work, settings(config, stage), run_dir, stage, shape)
    metrics = run_dir / stage / "metrics.jsonl"
    peak, (before, last) = last_step(metrics)["peak_memory_gib"], _first_and_last(metrics)
    before, after = before["held_out_loss"], kept.loss if kept else last["held_out_loss"]
    ui.say(f"  held-out loss {before:.3f} -> {after:.3f} nats per token")
    measured = {"held_out_loss_before": before, "held_out_loss": after, "tokens": last["tokens"]}
    return measured | {"peak_memory_gib": peak, "step": kept.step if kept else last["step"]}


def _first_and_last(metrics: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    measured = [record for record in read(metrics) if "held_out_loss" in record]
    return measured[0], measured[-1]
