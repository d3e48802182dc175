"""Train the pipeline's model on the answers of conversations, beside the source as a teacher or without.

With `sft.lora.rank` the model itself is frozen, and what is learnt is added to it in what is left.

Leaves `megatron/`, `architecture.json`, `metrics.jsonl`, `batches.json` (what a batch is made of) and NeMo's logs in
`nemo/`; until the pipeline has recorded it also `checkpoints/`, from which an interrupted run goes on.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nemo_run as run_

from bielik_nemo import ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.budget import flops_per_token
from bielik_nemo.config import Config
from bielik_nemo.config_align import LoRA
from bielik_nemo.engine import training
from bielik_nemo.engine.conversation_data import ConversationDataset, Plan, plan
from bielik_nemo.engine.criterion import Criterion
from bielik_nemo.engine.distillation import DistillationModel, TeacherGate
from bielik_nemo.engine.held_out_answers import HeldOutAnswers
from bielik_nemo.engine.progress import last_step, read
from bielik_nemo.engine.sft import AdaptiveRate, SFTModel
from bielik_nemo.errors import ConfigError
from bielik_nemo.stages import chat_sets, fit, model_stage, source_stage


def planned(config: Config, run_dir: Path) -> Plan:
    """Which conversations share a sequence."""
    return plan(str(run_dir / "chat" / "train"), config.sft.seq_length, config.sft.packing, config.run.seed)


def settings(config: Config, run_dir: Path) -> Config:
    """The configuration with this stage's pace in its places, and the steps that its epochs take.

    Raises:
        ConfigError: all steps would be warm-up.
    """
    own = config.sft
    steps = own.max_steps or math.ceil(own.epochs * len(planned(config, run_dir).packs) / own.global_batch_size)
    if own.warmup_steps >= steps:
        raise ConfigError(f"sft.warmup_steps: found {own.warmup_steps}, allowed: less than the {steps} steps of sft")
    return config.paced_by(replace(own, max_steps=steps))


def build(config: Config, run_dir: Path) -> run_.Partial:
    """The task as NeMo-Run knows it; see `fit.task`."""
    packs, paced, origin = planned(config, run_dir), settings(config, run_dir), run_dir / model_stage(config, "sft")
    shape, streamed = Architecture.from_json(origin / "architecture.json"), origin / "hf"
    measured = held_out(config, run_dir)
    teaches = config.sft.forward_kl > 0
    if teaches:
        model, teacher = _taught(paced, run_dir, shape, measured)
    else:
        model, teacher = _alone(paced, shape), None
    begins: Path | None = origin / "megatron"
    if streamed.is_dir() and teaches:
        begins, model.student_hf = None, str(streamed)
    elif streamed.is_dir() or config.sft.lora.rank:
        begins, model.origin = None, str(origin)
    directory, samples = run_dir / "chat" / "train", paced.trainer.max_steps * paced.data.global_batch_size
    dataset = run_.Config(
        ConversationDataset, str(directory), config.sft.seq_length, config.sft.packing, config.run.seed, samples
    )
    data = training.samples(paced, dataset, directory, run_dir / "import_hf" / "tokenizer")
    flops = flops_per_token(teacher, shape, config.sft.seq_length)
    # The rate is adapted to each batch: every one trains another number of tokens.
    fixed = replace(paced, optim=replace(paced.optim, reference_tokens=None))
    work = fit.task(fixed, run_dir, "sft", model, data, begins, flops, measured, packs.filled)
    if config.sft.reference_tokens:
        # First, so that what is recorded is the rate that is used.
        work.trainer.callbacks.insert(0, run_.Config(AdaptiveRate, config.sft.reference_tokens))
    return work


def _alone(config: Config, shape: Architecture) -> run_.Config[SFTModel]:
    return run_.Config(
        SFTModel,
        architecture=run_.Config(Architecture, **asdict(shape)),
        dtype=config.model.dtype,
        seq_length=config.data.seq_length,
        normalization=config.sft.normalization,
        recompute=config.trainer.recompute,
        lora=run_.Config(LoRA, **asdict(config.sft.lora)) if config.sft.lora.rank else None,
        seed=config.run.seed,
    )


def _taught(
    config: Config, run_dir: Path, shape: Architecture, measured: run_.Config[HeldOutAnswers]
) -> tuple[run_.Config[DistillationModel], Architecture]:
    """The model beside the source, whose predictions it learns too, and the source's shape."""
    source = run_dir / source_stage(config)
    teacher = Architecture.from_json(source / "architecture.json")
    gate = run_.Config(
        TeacherGate, held_out=measured, max_loss=config.distill.gate_max_loss, expected_loss=None, tolerance=0.0
    )
    model = run_.Config(
        DistillationModel,
        student=run_.Config(Architecture, **asdict(shape)),
        teacher=run_.Config(Architecture, **asdict(teacher)),
        teacher_checkpoint=str(source / "megatron"),
        gate=gate,
        criterion=run_.Config(
            Criterion,
            weights={"cross_entropy": 1.0, "forward_kl": config.sft.forward_kl},
            temperature=config.distill.temperature,
            beta=0.5,
            vocab_size=shape.vocab_size,
            normalization=config.sft.normalization,
        ),
        dtype=config.model.dtype,
        seq_length=config.data.seq_length,
        recompute=config.trainer.recompute,
    )
    return model, teacher


def held_out(config: Config, run_dir: Path) -> run_.Config[HeldOutAnswers]:
    """The run's held-out answers."""
    sources = chat_sets.held_out_sources(run_dir / "chat")
    return run_.Config(
        HeldOutAnswers,
        directory=str(run_dir / "chat" / "held_out"),
        seq_length=config.sft.seq_length,
        tokens=config.chat.held_out_tokens,
        batch_size=config.sft.micro_batch_size,
        sources=[source["name"] for source in sources],
        languages=[source["language"] for source in sources],
        packed=config.sft.packing,
    )


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Train, or go on training, then keep the weights: the last, or by `trainer.keep_best` the best.

    Raises:
        CheckpointError: the model, its teacher or the run's own checkpoint cannot be loaded.
        ConfigError: the conversations do not make enough steps.
        DataError: nothing is trained in them.
        GateError: the loss is not finite or far above the recent ones, or the teacher is not what it should be.
    """
    found, paced = planned(config, run_dir), settings(config, run_dir)
    samples = paced.trainer.max_steps * paced.data.global_batch_size
    batches = {
        "conversations": len(found.packs.items),
        "sequences": len(found.packs),
        "filled": round(found.filled, 4),
        "cut": found.corpus.cut,
        "left_out": len(found.corpus.lengths) - len(found.corpus.usable),
        "steps": paced.trainer.max_steps,
        "epochs": round(samples / len(found.packs), 3),
    }
    ui.say(
        f"  {batches['conversations']:,} conversations in {batches['sequences']:,} sequences of "
        f"{config.sft.seq_length:,}, {batches['filled']:.1%} filled; {batches['steps']:,} steps, "
        f"{batches['epochs']:.2f} epochs; {batches['cut']:,} cut, {batches['left_out']:,} left out"
    )
    shape = Architecture.from_json(run_dir / model_stage(config, "sft") / "architecture.json")
    kept = fit.carry_out(build(config, run_dir), run_dir, "sft", shape, {"batches.json": batches})
    metrics = run_dir / "sft" / "metrics.jsonl"
    measured, last = [each["held_out_loss"] for each in read(metrics) if "held_out_loss" in each], last_step(metrics)
    after = kept.loss if kept else measured[-1]
    ui.say(f"  held-out answers {measured[0]:.3f} -> {after:.3f} nats per token")
    return {
        "held_out_loss_before": measured[0],
        "held_out_loss": after,
        "loss": last["loss"],
        "tokens": last["tokens"],
        "tokens_per_second": last["tokens_per_second"],
        "peak_memory_gib": last["peak_memory_gib"],
        "filled": batches["filled"],
        "step": kept.step if kept else last["step"],
    }
