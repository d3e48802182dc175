"""What the stages that train share: the samples that are drawn, the task that NeMo runs, and what is left of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fiddle as fdl
import nemo_run as run_

from bielik_nemo import artifacts
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.data import mixture
from bielik_nemo.engine import best, distributed, snapshots, training
from bielik_nemo.engine.best import Best
from bielik_nemo.engine.distillation import train
from bielik_nemo.engine.snapshots import Snapshots
from bielik_nemo.errors import ConfigError
from bielik_nemo.stages import GRAPH


def samples(config: Config, run_dir: Path, index_cache: Path) -> run_.Config:
    """The data module that draws the run's training samples."""
    held_out, tokenizer = run_dir / "data" / "held_out", run_dir / "import_hf" / "tokenizer"
    return training.data(config, mixture.paths(mix(config, run_dir)), held_out, tokenizer, index_cache)


def mix(config: Config, run_dir: Path) -> list[mixture.Part]:
    """What the run draws of each source."""
    count = config.trainer.max_steps * config.data.global_batch_size
    return mixture.parts(config, run_dir, count, config.data.seq_length)


def paced(config: Config, stage: str, steps: int, batch: int) -> Config:
    """The configuration with the pace of `dpo` or `grpo` in its places.

    Args:
        config: of the run.
        stage: whose pace.
        steps: that its data make.
        batch: sequences that NeMo draws for each.

    Raises:
        ConfigError: all steps would be warm-up.
    """
    own = getattr(config, stage)
    if own.warmup_steps >= steps:
        raise ConfigError(
            f"{stage}.warmup_steps: found {own.warmup_steps}, allowed: less than the {steps} steps of {stage}"
        )
    found = config.paced_by(replace(own, max_steps=steps, global_batch_size=batch))
    # Batches differ in their tokens, and no report adapts these rates to them.
    return replace(found, optim=replace(found.optim, reference_tokens=None))


def held_out(config: Config, run_dir: Path) -> run_.Config:
    """The run's held-out text."""
    return training.held_out(config, run_dir / "data" / "held_out")


def task(
    config: Config,
    run_dir: Path,
    stage: str,
    model: run_.Config,
    data: run_.Config,
    begins: Path | None,
    flops: float,
    measured: run_.Config | None = None,
    filled: float = 1.0,
) -> run_.Partial:
    """The task as NeMo-Run knows it: `llm.train` over NeMo's model, data, trainer, logger and optimiser configs.

    Its fields can be changed like those of NeMo's own recipes before it is run.

    Args:
        config: with the stage's own settings in their places.
        run_dir: of the run.
        stage: in whose directory everything goes.
        model: NeMo's model.
        data: NeMo's data module.
        begins: weights that it starts from; None: the model's own.
        flops: of training on one token.
        measured: on what the model is measured beside training; None: the run's held-out text.
        filled: share of a batch's positions that hold text.
    """
    here = run_dir / stage
    measured = measured or held_out(config, run_dir)
    work = run_.Partial(
        train,
        model=model,
        data=data,
        trainer=training.trainer(config, here / "metrics.jsonl", measured, flops, filled),
        log=training.logger(config, here),
        resume=training.resume(begins),
        optim=training.optimizer(config),
    )
    if every := GRAPH[stage].snapshot_every(config):
        work.trainer.callbacks.append(run_.Config(Snapshots, str(here / snapshots.DIRECTORY), every))
    return work


def carry_out(
    work: run_.Partial, run_dir: Path, stage: str, shape: Architecture, record: dict[str, Any]
) -> Best | None:
    """Train, or go on training, then keep the weights: the last, or by `trainer.keep_best` the best.

    Args:
        work: the task.
        run_dir: of the run.
        stage: in whose directory everything goes.
        shape: of the model.
        record: what is to be left beside it, by the file's name.

    Returns:
        What was taken of the best; None: the last.
    """
    here = run_dir / stage
    distributed.ensure_rendezvous()
    try:
        kept = best.leave(fdl.build(work)(), here)
    finally:
        distributed.reset_parallel_state()
    if distributed.rank() == 0:
        shape.to_json(here / "architecture.json")
        for name, content in record.items():
            artifacts.write_json(here / name, content)
    return kept


def on_text(work: run_.Partial, config: Config, run_dir: Path, stage: str, shape: Architecture) -> Best | None:
    """`carry_out` on the run's mix of texts, which is shown before and left in `mixture.FILE`."""
    parts = mix(config, run_dir)
    mixture.announce(parts)
    return carry_out(work, run_dir, stage, shape, {mixture.FILE: mixture.record(parts)})
