"""Preference optimisation of the pipeline's model against what the stage `reference` kept of it.

Leaves `megatron/`, `architecture.json`, `metrics.jsonl`, `batches.json` (what a step is made of) and NeMo's logs in
`nemo/`; until the pipeline has recorded it also `checkpoints/`, from which an interrupted run goes on.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import fiddle as fdl
import nemo_run as run_

from bielik_nemo import ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.budget import flops_per_token
from bielik_nemo.config import Config
from bielik_nemo.engine import later, training
from bielik_nemo.engine.guard import Guard
from bielik_nemo.engine.held_out_pairs import HeldOutPairs
from bielik_nemo.engine.preference import Preference, PreferenceModel, ReferenceGate
from bielik_nemo.engine.preference_data import Plan, PreferenceData, PreferenceDataset, plan
from bielik_nemo.engine.progress import last_step, read
from bielik_nemo.stages import chat_sets, fit, model_stage, reference


def drawn(config: Config, run_dir: Path) -> dict[str, Any]:
    """What decides the steps: the arguments of `preference_data.plan`."""
    own = config.dpo
    return {
        "directory": str(run_dir / "preferences" / "train"),
        "seq_length": own.seq_length,
        "batch": own.global_batch_size,
        "seed": config.run.seed,
        "unit": own.micro_batch_size * config.data_parallel_size,
        "epochs": own.epochs,
        "max_steps": own.max_steps,
    }


def build(config: Config, run_dir: Path) -> run_.Partial:
    """The task as NeMo-Run knows it; see `fit.task`. The batch that NeMo draws is one of sequences."""
    planned, before = drawn(config, run_dir), run_dir / model_stage(config, "dpo")
    found = run_.Config(packed, **planned)
    steps, sequences, filled = (run_.Config(later.part, found, name) for name in ("steps", "sequences", "filled"))
    paced = fit.paced(config, "dpo", steps, sequences)
    shape = run_.Config(later.shape, str(before))
    own, measured = config.dpo, held_out(config, run_dir, run_.Config(later.part, shape, "vocab_size"))
    model = run_.Config(
        PreferenceModel,
        architecture=shape,
        preference=measured.preference,
        dtype=config.model.dtype,
        seq_length=own.seq_length,
        recompute=paced.trainer.recompute,
        hf=run_.Config(later.hf, str(before)),
    )
    dataset = run_.Config(PreferenceDataset, log_probs=measured.log_probs, **planned)
    data = training.samples(
        paced, dataset, run_dir / "preferences" / "train", run_dir / config.tokenizer_stage / "tokenizer"
    )
    fdl.update_callable(data, PreferenceData)
    flops, begins = run_.Config(flops_per_token, None, shape, own.seq_length), run_.Config(later.megatron, str(before))
    work = fit.task(paced, run_dir, "dpo", model, data, begins, flops, measured, filled)
    guard = next(each for each in work.trainer.callbacks if fdl.get_callable(each) is Guard)
    guard.floor = math.log(2)  # preferences that have been learned cost next to nothing: ten times that is no spike
    work.trainer.callbacks.append(run_.Config(ReferenceGate, own.gate_tolerance))
    return work


def packed(**drawn: Any) -> Plan:
    """`plan` under a name that a serialised task can tell, which a cached function has not."""
    return plan(**drawn)


def held_out(config: Config, run_dir: Path, vocab_size: int | run_.Config) -> run_.Config[HeldOutPairs]:
    """The run's held-out pairs, and the loss."""
    own, pairs = config.dpo, str(run_dir / "preferences")
    return run_.Config(
        HeldOutPairs,
        directory=str(run_dir / "preferences" / "held_out"),
        log_probs=str(run_dir / "reference" / reference.LOG_PROBS),
        seq_length=own.seq_length,
        pairs=config.chat.held_out_pairs,
        batch_size=own.micro_batch_size,
        preference=run_.Config(
            Preference,
            loss=own.loss,
            beta=own.beta,
            beta_rejected=own.beta_rejected,
            penalty=own.penalty,
            label_smoothing=own.label_smoothing,
            length_normalized=own.length_normalized,
            vocab_size=vocab_size,
        ),
        sources=run_.Config(chat_sets.held_out_column, pairs, "name"),
        languages=run_.Config(chat_sets.held_out_column, pairs, "language"),
    )


def run(config: Config, run_dir: Path, work: fit.Work | None = None) -> dict[str, Any]:
    """Train, or go on training, then keep the weights: the last, or by `trainer.keep_best` the best.

    Raises:
        CheckpointError: the model or the run's own checkpoint cannot be loaded.
        ConfigError: the pairs do not make enough steps.
        DataError: there are no pairs, or the references are not of this run's model, pairs and length.
        GateError: the first loss is not ln 2, or a loss is not finite or far above the recent ones.
    """
    reference.check(config, run_dir)
    found = plan(**drawn(config, run_dir))
    pairs, steps = found.batches.pairs, fit.steps(work, "dpo", found.steps)
    batches = {
        "pairs": len(pairs.usable),
        "pairs_per_step": config.dpo.global_batch_size,
        "sequences_per_step": found.sequences,
        "filled": round(found.filled, 4),
        "cut": pairs.cut,
        "left_out": len(pairs) - len(pairs.usable),
        "steps": steps,
        "epochs": round(steps * config.dpo.global_batch_size / len(pairs.usable), 3),
    }
    ui.say(
        f"  {batches['pairs']:,} pairs, {batches['pairs_per_step']:,} a step in {found.sequences:,} sequences of "
        f"{config.dpo.seq_length:,}, {found.filled:.1%} filled; {steps:,} steps, {batches['epochs']:.2f} epochs; "
        f"{batches['cut']:,} cut, {batches['left_out']:,} left out"
    )
    shape = Architecture.from_json(run_dir / model_stage(config, "dpo") / "architecture.json")
    kept = fit.carry_out(work or build(config, run_dir), run_dir, "dpo", shape, {"batches.json": batches})
    records = [each for each in read(run_dir / "dpo" / "metrics.jsonl") if "held_out_loss" in each]
    last = last_step(run_dir / "dpo" / "metrics.jsonl")
    after = next((each for each in records if kept and each["step"] == kept.step), records[-1])
    names = {name.removeprefix("held_out_"): name for name in after if name.startswith("held_out_")}
    ui.say(
        f"  held-out pairs: accuracy {after['held_out_accuracy']:.1%}, margin {after['held_out_margin']:.3f}, "
        f"chosen answer {after['held_out_chosen_log_ratio']:+.3f} nats from the reference's"
    )
    return {
        **{name: after[name] for name in names.values()},
        "held_out_loss_before": records[0]["held_out_loss"],
        "loss": last["loss"],
        "tokens": last["tokens"],
        "tokens_per_second": last["tokens_per_second"],
        "peak_memory_gib": last["peak_memory_gib"],
        "filled": batches["filled"],
        "step": after["step"] if kept else last["step"],
    }
