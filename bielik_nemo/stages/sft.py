"""Train the pipeline's model on the answers of conversations, beside the source as a teacher or without.

With `sft.lora.rank` the model itself is frozen, and what is learnt is added to it in what is left.

Leaves `megatron/`, `architecture.json`, `metrics.jsonl`, `batches.json` (what a batch is made of) and NeMo's logs in
`nemo/`; until the pipeline has recorded it also `checkpoints/`, from which an interrupted run goes on.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nemo_run as run_

from bielik_nemo import ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.budget import flops_per_token
from bielik_nemo.config import Config
from bielik_nemo.engine import later, training
from bielik_nemo.engine.conversation_data import ConversationDataset, Plan, plan
from bielik_nemo.engine.criterion import Criterion
from bielik_nemo.engine.distillation import DistillationModel, TeacherGate
from bielik_nemo.engine.held_out_answers import HeldOutAnswers
from bielik_nemo.engine.progress import last_step, read
from bielik_nemo.engine.sft import AdaptiveRate, SFTModel
from bielik_nemo.stages import chat_sets, fit, model_stage, source_stage
from bielik_nemo.stages.nodes import configured, known


def planned(config: Config, run_dir: Path) -> run_.Config[Plan]:
    """Which conversations share a sequence."""
    own = config.sft
    drawn = {"seq_length": own.seq_length, "packed": own.packing, "seed": config.run.seed}
    return run_.Config(packed, directory=str(run_dir / "chat" / "train"), **drawn)


def packed(**drawn: Any) -> Plan:
    """`plan` under a name that a serialised task can tell, which a cached function has not."""
    return plan(**drawn)


def settings(config: Config, run_dir: Path) -> Config:
    """The configuration with this stage's pace in its places, and the steps that its epochs take; see `fit.paced`.

    Raises:
        ConfigError: all configured steps would be warm-up.
    """
    own = config.sft
    taken = run_.Config(steps, planned(config, run_dir), own.epochs, own.global_batch_size)
    return fit.paced(config, "sft", taken, own.global_batch_size)


def steps(plan: Plan, epochs: float, batch: int) -> int:
    """How many steps so many epochs take."""
    return math.ceil(epochs * len(plan.packs) / batch)


def build(config: Config, run_dir: Path) -> run_.Partial:
    """The task as NeMo-Run knows it; see `fit.task`."""
    packs, paced, origin = planned(config, run_dir), settings(config, run_dir), run_dir / model_stage(config, "sft")
    shape, begins = run_.Config(later.shape, str(origin)), run_.Config(later.megatron, str(origin))
    own, measured = config.sft, held_out(config, run_dir)
    teaches = config.sft.forward_kl > 0
    if teaches:
        model, teacher = _taught(paced, run_dir, shape, measured)
    else:
        model, teacher = _alone(paced, shape), None
    if own.lora.rank:
        begins, model.origin = None, str(origin)
    elif teaches:
        model.student_hf = run_.Config(later.hf, str(origin))
    else:
        model.origin = run_.Config(later.only_hf, str(origin))
    directory = run_dir / "chat" / "train"
    samples = run_.Config(later.product, paced.trainer.max_steps, config.sft.global_batch_size)
    dataset = run_.Config(
        ConversationDataset, str(directory), config.sft.seq_length, config.sft.packing, config.run.seed, samples
    )
    data = training.samples(paced, dataset, directory, run_dir / config.tokenizer_stage / "tokenizer")
    flops = run_.Config(flops_per_token, teacher, shape, own.seq_length)
    filled = run_.Config(later.part, packs, "filled")
    work = fit.task(paced, run_dir, "sft", model, data, begins, flops, measured, filled)
    if config.sft.reference_tokens:
        # First, so that what is recorded is the rate that is used.
        work.trainer.callbacks.insert(0, run_.Config(AdaptiveRate, config.sft.reference_tokens))
    return work


def _alone(config: Config, shape: run_.Config[Architecture]) -> run_.Config[SFTModel]:
    return run_.Config(
        SFTModel,
        architecture=shape,
        dtype=config.model.dtype,
        seq_length=config.data.seq_length,
        normalization=config.sft.normalization,
        recompute=config.trainer.recompute,
        lora=configured(config.sft.lora) if config.sft.lora.rank else None,
        seed=config.run.seed,
    )


def _taught(
    config: Config, run_dir: Path, shape: run_.Config[Architecture], measured: run_.Config[HeldOutAnswers]
) -> tuple[run_.Config[DistillationModel], run_.Config[Architecture]]:
    """The model beside the source, whose predictions it learns too, and the source's shape."""
    source = run_dir / source_stage(config)
    teacher = run_.Config(later.shape, str(source))
    gate = run_.Config(
        TeacherGate, held_out=measured, max_loss=config.distill.gate_max_loss, expected_loss=None, tolerance=0.0
    )
    model = run_.Config(
        DistillationModel,
        student=shape,
        teacher=teacher,
        teacher_checkpoint=str(source / "megatron"),
        gate=gate,
        criterion=run_.Config(
            Criterion,
            weights={"cross_entropy": 1.0, "forward_kl": config.sft.forward_kl},
            temperature=config.distill.temperature,
            beta=0.5,
            vocab_size=run_.Config(later.part, shape, "vocab_size"),
            normalization=config.sft.normalization,
        ),
        dtype=config.model.dtype,
        seq_length=config.data.seq_length,
        recompute=config.trainer.recompute,
    )
    return model, teacher


def held_out(config: Config, run_dir: Path) -> run_.Config[HeldOutAnswers]:
    """The run's held-out answers."""
    chats = str(run_dir / "chat")
    return run_.Config(
        HeldOutAnswers,
        directory=str(run_dir / "chat" / "held_out"),
        seq_length=config.sft.seq_length,
        tokens=config.chat.held_out_tokens,
        batch_size=config.sft.micro_batch_size,
        sources=run_.Config(chat_sets.held_out_column, chats, "name"),
        languages=run_.Config(chat_sets.held_out_column, chats, "language"),
        packed=config.sft.packing,
    )


def run(config: Config, run_dir: Path, work: fit.Work | None = None) -> dict[str, Any]:
    """Train, or go on training, then keep the weights: the last, or by `trainer.keep_best` the best.

    Raises:
        CheckpointError: the model, its teacher or the run's own checkpoint cannot be loaded.
        ConfigError: the conversations do not make enough steps.
        DataError: nothing is trained in them.
        GateError: the loss is not finite or far above the recent ones, or the teacher is not what it should be.
    """
    found, steps = (known(each) for each in (planned(config, run_dir), settings(config, run_dir).trainer.max_steps))
    steps = fit.steps(work, "sft", steps)
    samples = steps * config.sft.global_batch_size
    batches = {
        "conversations": len(found.packs.items),
        "sequences": len(found.packs),
        "filled": round(found.filled, 4),
        "cut": found.corpus.cut,
        "left_out": len(found.corpus.lengths) - len(found.corpus.usable),
        "steps": steps,
        "epochs": round(samples / len(found.packs), 3),
    }
    ui.say(
        f"  {batches['conversations']:,} conversations in {batches['sequences']:,} sequences of "
        f"{config.sft.seq_length:,}, {batches['filled']:.1%} filled; {batches['steps']:,} steps, "
        f"{batches['epochs']:.2f} epochs; {batches['cut']:,} cut, {batches['left_out']:,} left out"
    )
    shape = Architecture.from_json(run_dir / model_stage(config, "sft") / "architecture.json")
    kept = fit.carry_out(work or build(config, run_dir), run_dir, "sft", shape, {"batches.json": batches})
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
