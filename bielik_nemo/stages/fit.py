"""What the stages that train share: the samples that are drawn, the task that NeMo runs, and what is left of it."""

from __future__ import annotations

from pathlib import Path

import fiddle as fdl
import nemo_run as run_

from bielik_nemo import artifacts
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.data import mixture
from bielik_nemo.engine import best, distributed, training
from bielik_nemo.engine.best import Best
from bielik_nemo.engine.distillation import train


def samples(config: Config, run_dir: Path, index_cache: Path) -> run_.Config:
    """The data module that draws the run's training samples."""
    held_out, tokenizer = run_dir / "data" / "held_out", run_dir / "import_hf" / "tokenizer"
    return training.data(config, mixture.paths(mix(config, run_dir)), held_out, tokenizer, index_cache)


def mix(config: Config, run_dir: Path) -> list[mixture.Part]:
    """What the run draws of each source."""
    count = config.trainer.max_steps * config.data.global_batch_size
    return mixture.parts(config, run_dir, count, config.data.seq_length)


def task(
    config: Config, run_dir: Path, stage: str, model: run_.Config, data: run_.Config, begins: Path | None, flops: float
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
    """
    here = run_dir / stage
    held_out = training.held_out(config, run_dir / "data" / "held_out")
    return run_.Partial(
        train,
        model=model,
        data=data,
        trainer=training.trainer(config, here / "metrics.jsonl", held_out, flops),
        log=training.logger(config, here),
        resume=training.resume(begins),
        optim=training.optimizer(config),
    )


def carry_out(work: run_.Partial, config: Config, run_dir: Path, stage: str, shape: Architecture) -> Best | None:
    """Train, or go on training, then keep the weights: the last, or by `trainer.keep_best` the best.

    Returns:
        What was taken of the best; None: the last.
    """
    here, parts = run_dir / stage, mix(config, run_dir)
    mixture.announce(parts)
    distributed.ensure_rendezvous()
    try:
        kept = best.leave(fdl.build(work)(), here)
    finally:
        distributed.reset_parallel_state()
    if distributed.rank() == 0:
        shape.to_json(here / "architecture.json")
        artifacts.write_json(here / mixture.FILE, mixture.record(parts))
    return kept
