"""What the stages that train share: the samples that are drawn, the task that NeMo runs, and what is left of it.

A task reads nothing of the run when it is made, so that it can be made anywhere; see engine/later.py.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import nemo_run as run_

from bielik_nemo import artifacts
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config, Data
from bielik_nemo.config_prune import TextSource
from bielik_nemo.data import mixture
from bielik_nemo.engine import best, distributed, later, snapshots, training
from bielik_nemo.engine.best import Best
from bielik_nemo.engine.distillation import train
from bielik_nemo.engine.snapshots import Snapshots
from bielik_nemo.errors import ConfigError
from bielik_nemo.stages import GRAPH
from bielik_nemo.stages.nodes import configured, known

Work = functools.partial
"""A built task: trains, and returns this rank's model."""


def samples(config: Config, run_dir: Path, index_cache: Path) -> run_.Config:
    """The data module that draws the run's training samples."""
    held_out, tokenizer = run_dir / "data" / "held_out", run_dir / config.tokenizer_stage / "tokenizer"
    data, count = config.data, config.trainer.max_steps * config.data.global_batch_size
    mixed = [TextSource(language=source.language, weight=source.weight) for source in data.sources]
    decisive = Data(sources=mixed, language_weights=data.language_weights, seq_length=data.seq_length)
    drawn = run_.Config(mixture.drawn, configured(decisive), str(run_dir), count)
    return training.data(config, drawn, held_out, tokenizer, index_cache)


def mix(config: Config, run_dir: Path) -> list[mixture.Part]:
    """What the run draws of each source."""
    count = config.trainer.max_steps * config.data.global_batch_size
    return mixture.parts(config.data, run_dir, count, config.data.seq_length)


def paced(config: Config, stage: str, steps: run_.Config, batch: int | run_.Config) -> Config:
    """The configuration with the pace of `sft`, `dpo` or `grpo` in its places.

    Args:
        config: of the run.
        stage: whose pace.
        steps: that its data make; they stand in the number's place unless that is configured.
        batch: sequences that NeMo draws for each step.

    Raises:
        ConfigError: all configured steps would be warm-up.
    """
    own = getattr(config, stage)
    steps = run_.Config(later.steps, stage, own.max_steps or steps, own.warmup_steps)
    steps = known(steps) if own.max_steps else steps
    found = config.paced_by(replace(own, max_steps=steps, global_batch_size=batch))
    # Batches differ in their tokens: `sft` adapts the rate to each, and no report adapts those of the others.
    return replace(found, optim=replace(found.optim, reference_tokens=None))


def steps(work: Work | None, stage: str, planned: int) -> int:
    """How many there are: as planned, or fewer where a task was changed.

    Raises:
        ConfigError: it wants more, for which there are no samples.
    """
    wanted = work.keywords["trainer"].max_steps if work else planned
    if wanted > planned:
        raise ConfigError(
            f"task.trainer.max_steps: found {wanted}, allowed: at most {planned}, for which samples are drawn; "
            f"more by the override {stage}.max_steps"
        )
    return wanted


def held_out(config: Config, run_dir: Path) -> run_.Config:
    """The run's held-out text."""
    return training.held_out(config, run_dir / "data" / "held_out")


def task(
    config: Config,
    run_dir: Path,
    stage: str,
    model: run_.Config,
    data: run_.Config,
    begins: run_.Config[str] | None,
    flops: run_.Config,
    measured: run_.Config | None = None,
    filled: float | run_.Config = 1.0,
) -> run_.Partial:
    """The task as NeMo-Run knows it: `llm.train` over NeMo's model, data, trainer, logger and optimiser configs.

    Its fields can be changed like those of NeMo's own recipes before it is run.

    Args:
        config: with the stage's own settings in their places.
        run_dir: of the run.
        stage: in whose directory everything goes.
        model: NeMo's model.
        data: NeMo's data module.
        begins: Megatron checkpoint that it starts from; None: the model's own.
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
    work: run_.Partial | Work, run_dir: Path, stage: str, shape: Architecture, record: dict[str, Any]
) -> Best | None:
    """Train, or go on training, then keep the weights: the last, or by `trainer.keep_best` the best.

    Args:
        work: the task, built or not.
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
        kept = best.leave(known(work)(), here)
    finally:
        distributed.reset_parallel_state()
    if distributed.rank() == 0:
        shape.to_json(here / "architecture.json")
        for name, content in record.items():
            artifacts.write_json(here / name, content)
    return kept


def on_text(work: run_.Partial | Work, config: Config, run_dir: Path, stage: str, shape: Architecture) -> Best | None:
    """`carry_out` on the run's mix of texts, which is shown before and left in `mixture.FILE`."""
    parts = mix(config, run_dir)
    mixture.announce(parts)
    return carry_out(work, run_dir, stage, shape, {mixture.FILE: mixture.record(parts)})
