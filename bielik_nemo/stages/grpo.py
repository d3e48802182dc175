"""Reinforcement learning of the pipeline's model on the tasks that the stage `tasks` left.

Leaves `megatron/`, `architecture.json`, `metrics.jsonl`, `batches.json` (what a step is made of), `rollouts/` (every
answer with its reward, a file for each rollout) and NeMo's logs in `nemo/`; until the pipeline has recorded it also
`checkpoints/`, from which an interrupted run goes on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fiddle as fdl
import nemo_run as run_

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.budget import flops_per_token
from bielik_nemo.config import Config
from bielik_nemo.engine import later, training
from bielik_nemo.engine.grading import Grader
from bielik_nemo.engine.guard import Guard
from bielik_nemo.engine.held_out_tasks import HeldOutTasks
from bielik_nemo.engine.policy import Policy, PolicyModel
from bielik_nemo.engine.policy_data import Numbers, PolicyData
from bielik_nemo.engine.progress import last_step, read
from bielik_nemo.engine.rollout import Sampling
from bielik_nemo.engine.rollout_plan import Plan, plan
from bielik_nemo.engine.rollouts import Rollouts
from bielik_nemo.stages import fit, model_stage
from bielik_nemo.stages.nodes import configured

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
    """The task as NeMo-Run knows it; see `fit.task`."""
    before, own = run_dir / model_stage(config, "grpo"), config.grpo
    steps = run_.Config(later.part, run_.Config(planned, **drawn(config, run_dir)), "steps")
    unit = own.micro_batch_size * config.data_parallel_size  # NeMo draws one micro-batch for each update
    paced = fit.paced(config, "grpo", steps, unit)
    shape = run_.Config(later.shape, str(before))
    measured = held_out(config, run_dir, run_.Config(later.part, shape, "vocab_size"))
    model = run_.Config(
        PolicyModel,
        architecture=shape,
        preference=run_.Config(
            Policy,
            vocab_size=measured.grader.vocab_size,
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
        hf=run_.Config(later.hf, str(before)),
    )
    tasks, tokenizer = run_dir / "tasks", run_dir / config.tokenizer_stage / "tokenizer"
    numbers = run_.Config(
        Numbers, directory=str(tasks), count=run_.Config(later.product, paced.trainer.max_steps, unit)
    )
    data = training.samples(paced, numbers, tasks, tokenizer)
    fdl.update_callable(data, PolicyData)
    flops, begins = run_.Config(flops_per_token, None, shape, own.seq_length), run_.Config(later.megatron, str(before))
    work = fit.task(paced, run_dir, "grpo", model, data, begins, flops, measured)
    guard = next(each for each in work.trainer.callbacks if fdl.get_callable(each) is Guard)
    guard.max_spike = None  # a loss about 0, of either sign, has no times
    work.trainer.callbacks.append(
        run_.Config(
            Rollouts,
            directory=str(run_dir / "grpo" / ROLLOUTS),
            drawn=drawn(config, run_dir),
            settings=configured(replace(own, sources=[])),
            grader=measured.grader,
            sampling=measured.sampling,
            architecture=shape,
            reference=str(before),
            dtype="bfloat16" if config.trainer.precision == "bf16-mixed" else config.model.dtype,
            seed=config.run.seed,
        )
    )
    return work


def planned(**drawn: Any) -> Plan:
    """`plan` under a name that a serialised task can tell, which a cached function has not."""
    return plan(**drawn)


def held_out(config: Config, run_dir: Path, vocab_size: int | run_.Config) -> run_.Config[HeldOutTasks]:
    """The run's held-out tasks, and what answers and grades them."""
    own, tasks = config.grpo, str(run_dir / "tasks")
    return run_.Config(
        HeldOutTasks,
        file=str(run_dir / "tasks" / "held_out.jsonl"),
        tasks=config.chat.held_out_tasks,
        max_prompt_tokens=own.max_prompt_tokens,
        grader=run_.Config(
            Grader,
            tokenizer=str(run_dir / config.tokenizer_stage / "tokenizer"),
            vocab_size=vocab_size,
            terms=[configured(source.rewards) for source in own.sources],
            rewards=configured(own.rewards),
            rollouts=own.rollouts,
            batch_size=own.rollout_batch_size,
        ),
        sampling=run_.Config(
            Sampling,
            max_tokens=own.max_answer_tokens,
            stop_ids=run_.Config(stop_ids, tasks),
            stop=tuple(own.stop),
            temperature=own.temperature,
            top_p=own.top_p,
            top_k=own.top_k,
            seed=config.run.seed,
        ),
        sources=run_.Config(source_names, tasks),
    )


def stop_ids(directory: str) -> tuple[int, ...]:
    """Tokens that end an answer, as the stage `tasks` found them."""
    return tuple(artifacts.read_json(Path(directory) / "summary.json")["stop_ids"])


def source_names(directory: str) -> list[str]:
    """The sources that the stage `tasks` has read."""
    return [source["name"] for source in artifacts.read_json(Path(directory) / "summary.json")["sources"]]


def run(config: Config, run_dir: Path, work: fit.Work | None = None) -> dict[str, Any]:
    """Train, or go on training, then keep the weights: the last, or by `trainer.keep_best` the best.

    Raises:
        CheckpointError: the model or the run's own checkpoint cannot be loaded.
        ConfigError: the tasks do not make enough steps, or a reward cannot be found.
        DataError: there are no tasks.
        GateError: what samples is not what trains, rewards fail too often, or a loss is not finite.
    """
    own, found = config.grpo, plan(**drawn(config, run_dir))
    steps = fit.steps(work, "grpo", found.steps)
    rollouts = -(-steps // found.updates)
    batches = {
        "tasks": len(found.tasks),
        "left_out": found.left_out,
        "prompts_per_rollout": own.prompts_per_rollout,
        "answers_per_rollout": own.prompts_per_rollout * own.group_size,
        "updates_per_rollout": found.updates,
        "rollouts": rollouts,
        "steps": steps,
        "epochs": round(rollouts * own.prompts_per_rollout / len(found.tasks), 3),
    }
    ui.say(
        f"  {len(found.tasks):,} tasks, {own.prompts_per_rollout:,} a rollout with {own.group_size} answers each, "
        f"{found.updates:,} updates of it; {steps:,} steps, {batches['epochs']:.2f} epochs; "
        f"{found.left_out:,} left out"
    )
    shape = Architecture.from_json(run_dir / model_stage(config, "grpo") / "architecture.json")
    kept = fit.carry_out(work or build(config, run_dir), run_dir, "grpo", shape, {"batches.json": batches})
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
