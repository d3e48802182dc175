"""Reinforcement learning of the pipeline's model on the tasks that the stage `tasks` left.

Leaves `megatron/`, `architecture.json`, `metrics.jsonl`, `batches.json` (what a step is made of), `rollouts/` (every
answer with its reward, a file for each rollout) and NeMo's logs in `nemo/`; until the pipeline has recorded it also
`checkpoints/`, from which an interrupted run goes on.
"""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import fiddle as fdl
import nemo_run as run_

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.budget import flops_per_token
from bielik_nemo.config import Config
from bielik_nemo.engine import training
from bielik_nemo.engine.grading import Grader
from bielik_nemo.engine.guard import Guard
from bielik_nemo.engine.held_out_tasks import HeldOutTasks
from bielik_nemo.engine.policy import Policy, PolicyModel
from bielik_nemo.engine.policy_data import Numbers, PolicyData
from bielik_nemo.engine.progress import last_step, read
from bielik_nemo.engine.rollout import Sampling
from bielik_nemo.engine.rollout_plan import plan
from bielik_nemo.engine.rollouts import Rollouts
from bielik_nemo.stages import fit, model_stage

ROLLOUTS = "rollouts"


def drawn(config: Config, run_dir: Path) -> dict[str, Any]:
    """What decides the steps: the arguments of `rollouts.plan`."""
    own = config.grpo
    return {
        "file": str(run_dir / "tasks" / "train.jsonl"),
        "max_prompt_tokens": own.max_prompt_tokens,
        "prompts": own.prompts_per_rollout,
        "batch": own.global_batch_size,
        "passes": own.passes_per_rollout,
        "epochs": own.epochs,
        "max_steps": own.max_steps,
    }


def build(config: Config, run_dir: Path) -> run_.Partial:
    """The task as NeMo-Run knows it; see `fit.task`.

    Raises:
        DataError: there are no tasks.
    """
    found, before = plan(**drawn(config, run_dir)), run_dir / model_stage(config, "grpo")
    unit = config.grpo.micro_batch_size * config.data_parallel_size  # NeMo draws one micro-batch for each update
    paced = fit.paced(config, "grpo", found.steps, unit)
    shape = Architecture.from_json(before / "architecture.json")
    streamed, own, measured = before / "hf", config.grpo, held_out(config, run_dir, shape.vocab_size)
    architecture = run_.Config(Architecture, **asdict(shape))
    model = run_.Config(
        PolicyModel,
        architecture=architecture,
        preference=run_.Config(
            Policy,
            vocab_size=shape.vocab_size,
            temperature=own.temperature,
            normalization=own.normalization,
            max_tokens=own.max_answer_tokens,
            clip_low=own.clip_low,
            clip_high=own.clip_high,
            kl=own.kl,
        ),
        dtype=config.model.dtype,
        seq_length=own.seq_length,
        recompute=paced.trainer.recompute,
        hf=str(streamed) if streamed.is_dir() else "",
    )
    tasks, tokenizer = run_dir / "tasks", run_dir / "import_hf" / "tokenizer"
    numbers = run_.Config(Numbers, directory=str(tasks), count=found.steps * paced.data.global_batch_size)
    data = training.samples(paced, numbers, tasks, tokenizer)
    fdl.update_callable(data, PolicyData)
    flops, begins = flops_per_token(None, shape, own.seq_length), None if model.hf else before / "megatron"
    work = fit.task(paced, run_dir, "grpo", model, data, begins, flops, measured)
    guard = next(each for each in work.trainer.callbacks if fdl.get_callable(each) is Guard)
    guard.max_spike = None  # a loss about 0, of either sign, has no times
    work.trainer.callbacks.append(
        run_.Config(
            Rollouts,
            directory=str(run_dir / "grpo" / ROLLOUTS),
            drawn=drawn(config, run_dir),
            settings=_configured(replace(own, sources=[])),
            grader=measured.grader,
            sampling=measured.sampling,
            architecture=architecture,
            reference=str(before),
            dtype="bfloat16" if config.trainer.precision == "bf16-mixed" else config.model.dtype,
            seed=config.run.seed,
        )
    )
    return work


def held_out(config: Config, run_dir: Path, vocab_size: int) -> run_.Config[HeldOutTasks]:
    """The run's held-out tasks, and what answers and grades them."""
    own, found = config.grpo, artifacts.read_json(run_dir / "tasks" / "summary.json")
    return run_.Config(
        HeldOutTasks,
        file=str(run_dir / "tasks" / "held_out.jsonl"),
        tasks=config.chat.held_out_tasks,
        max_prompt_tokens=own.max_prompt_tokens,
        grader=run_.Config(
            Grader,
            tokenizer=str(run_dir / "import_hf" / "tokenizer"),
            vocab_size=vocab_size,
            terms=[_configured(source.rewards) for source in own.sources],
            rewards=_configured(own.rewards),
            rollouts=own.rollouts,
            batch_size=own.rollout_batch_size,
        ),
        sampling=run_.Config(
            Sampling,
            max_tokens=own.max_answer_tokens,
            stop_ids=tuple(found["stop_ids"]),
            stop=tuple(own.stop),
            temperature=own.temperature,
            top_p=own.top_p,
            top_k=own.top_k,
            seed=config.run.seed,
        ),
        sources=[source["name"] for source in found["sources"]],
    )


def _configured(value: Any) -> Any:
    """Settings as NeMo-Run's configs."""
    if is_dataclass(value):
        given = {each.name: _configured(getattr(value, each.name)) for each in fields(value)}
        return run_.Config(type(value), **given)
    return [_configured(each) for each in value] if isinstance(value, list) else value


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Train, or go on training, then keep the weights: the last, or by `trainer.keep_best` the best.

    Raises:
        CheckpointError: the model or the run's own checkpoint cannot be loaded.
        ConfigError: the tasks do not make enough steps, or a reward cannot be found.
        DataError: there are no tasks.
        GateError: what samples is not what trains, rewards fail too often, or a loss is not finite.
    """
    own, found = config.grpo, plan(**drawn(config, run_dir))
    rollouts = -(-found.steps // found.updates)
    batches = {
        "tasks": len(found.tasks),
        "left_out": found.left_out,
        "prompts_per_rollout": own.prompts_per_rollout,
        "answers_per_rollout": own.prompts_per_rollout * own.group_size,
        "updates_per_rollout": found.updates,
        "rollouts": rollouts,
        "steps": found.steps,
        "epochs": round(rollouts * own.prompts_per_rollout / len(found.tasks), 3),
    }
    ui.say(
        f"  {len(found.tasks):,} tasks, {own.prompts_per_rollout:,} a rollout with {own.group_size} answers each, "
        f"{found.updates:,} updates of it; {found.steps:,} steps, {batches['epochs']:.2f} epochs; "
        f"{found.left_out:,} left out"
    )
    shape = Architecture.from_json(run_dir / model_stage(config, "grpo") / "architecture.json")
    kept = fit.carry_out(build(config, run_dir), run_dir, "grpo", shape, {"batches.json": batches})
    records = [each for each in read(run_dir / "grpo" / "metrics.jsonl") if "held_out_reward" in each]
    last = last_step(run_dir / "grpo" / "metrics.jsonl")
    after = next((each for each in records if kept and each["step"] == kept.step), records[-1])
    ui.say(
        f"  held-out tasks: reward {records[0]['held_out_reward']:.3f} -> {after['held_out_reward']:.3f} "
        f"(standard error {after['held_out_reward_se']:.3f}), correct {after['held_out_correct']:.1%}"
    )
    return {
        **{name: after[name] for name in after if name.startswith("held_out_")},
        "held_out_reward_before": records[0]["held_out_reward"],
        "reward": last["reward"],
        "kl": last["kl"],
        "tokens": last["tokens"],
        "tokens_per_second": last["tokens_per_second"],
        "peak_memory_gib": last["peak_memory_gib"],
        "step": after["step"] if kept else last["step"],
    }
