"""A configuration of GRPO as NeMo-RL's: the same recipe, with the policy on Megatron and rollouts by vLLM.

What NeMo-RL calls a step is a rollout with its updates, here a step is an update; it goes once over the answers of a
rollout, and its rate moves on with the rollouts. Losses are averaged as `grpo.normalization` says:

    answer    NeMo-RL's mean over sequences of their token means (token_level_loss: false)
    tokens    its mean over all tokens of the update (token_level_loss: true)
    constant  the sum over tokens, of which NeMo-RL has no mean by a constant: our loss.py divides it

The advantage is (r - mean) / (std of a sample + 1e-6) in both. What it cannot do is a `ConfigError` that names the key.
Deviation: NeMo-RL's gradient of the KL divergence has the part that comes from the sampling as well (arXiv 2506.09477).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from bielik_nemo.align.nemo_rl.schema import check
from bielik_nemo.config import Config
from bielik_nemo.errors import ConfigError

NAME = "bielik_nemo"
"""What our environment, our tasks and our section are called in NeMo-RL's configuration."""


@dataclass(frozen=True)
class Job:
    """What a run of NeMo-RL reads and leaves.

    Attributes:
        directory: where it writes checkpoints, logs and answers.
        model: Hugging Face directory of the model that it begins with.
        tasks: directory of the stage `tasks`.
        train: how many tasks it can train on: those with longer prompts are left out.
        held_out: how many measure it.
        stop_ids: tokens that end an answer.
    """

    directory: Path
    model: Path
    tasks: Path
    train: int
    held_out: int
    stop_ids: tuple[int, ...]


def render(config: Config, job: Job) -> dict[str, Any]:
    """NeMo-RL's configuration, and a section of ours that run.py takes out of it.

    Raises:
        ConfigError: NeMo-RL cannot do what a key asks for, or what comes of it does not fit NeMo-RL's schema.
    """
    if found := [*problems(config), *_too_few(config, job)]:
        raise ConfigError("\n".join(found))
    import yaml

    base = yaml.safe_load((resources.files(__package__) / "base.yaml").read_text(encoding="utf-8"))
    rendered = _merged(base, _own(config, job))
    check(rendered)
    return {NAME: _ours(config), **rendered}


def rollouts(config: Config, tasks: int) -> int:
    """How many there are, which are NeMo-RL's steps."""
    own = config.grpo
    updates = own.prompts_per_rollout // own.global_batch_size
    return math.ceil(own.max_steps / updates if own.max_steps else own.epochs * tasks / own.prompts_per_rollout)


def problems(config: Config) -> Iterator[str]:
    """What NeMo-RL cannot do, as `key: found ..., allowed: ...`."""
    own, beside = config.grpo, "with grpo.engine=nemo_rl"
    for key, value, allowed in (
        ("grpo.rollouts", own.rollouts, "vllm"),
        ("grpo.passes_per_rollout", own.passes_per_rollout, 1),
        ("grpo.decay_steps", own.decay_steps, 0),
    ):
        if value != allowed:
            yield f"{key}: found {value}, allowed: {allowed} {beside}"
    if own.schedule == "wsd":
        yield f"grpo.schedule: found wsd, allowed: constant, cosine {beside}"
    updates = own.prompts_per_rollout // own.global_batch_size
    for key, value in (("grpo.max_steps", own.max_steps or 0), ("grpo.warmup_steps", own.warmup_steps)):
        if value % updates:
            yield f"{key}: found {value}, allowed: multiples of {updates}, the updates of a rollout, {beside}"
    if own.global_batch_size * own.group_size % config.data_parallel_size:
        allowed = f"so many that data-parallel size {config.data_parallel_size} divides the answers to them {beside}"
        yield f"grpo.global_batch_size: found {own.global_batch_size}, allowed: {allowed}"


def _too_few(config: Config, job: Job) -> Iterator[str]:
    """What the tasks do not suffice for, in the same words."""
    own = config.grpo
    if job.train < own.prompts_per_rollout:
        allowed = f"up to {job.train}, the tasks within grpo.max_prompt_tokens={own.max_prompt_tokens}"
        yield f"grpo.prompts_per_rollout: found {own.prompts_per_rollout}, allowed: {allowed}"
    if config.trainer.keep_best and not job.held_out:
        yield "trainer.keep_best: found True, allowed: False where no task is held out"


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Both, and of what both have, the section merged or the value of `own`."""
    both = {key: _merged(base[key], own[key]) for key in base.keys() & own.keys() if isinstance(own[key], dict)}
    return base | own | both


def _ours(config: Config) -> dict[str, Any]:
    """What loss.py and run.py do beside NeMo-RL."""
    own = config.grpo
    return {
        "max_tokens": own.max_answer_tokens if own.normalization == "constant" else None,
        "filter_groups": own.filter_groups,
        "mismatch_tolerance": own.mismatch_tolerance,
        "save_answers": own.save_answers,
        "keep_best": config.trainer.keep_best,
    }


def _own(config: Config, job: Job) -> dict[str, Any]:
    """What differs from run to run."""
    own = config.grpo
    return {
        "grpo": _grpo(config, job),
        "loss_fn": {
            "token_level_loss": own.normalization != "answer",
            "ratio_clip_min": own.clip_low,
            "ratio_clip_max": own.clip_high,
            "reference_policy_kl_penalty": own.kl,
        },
        "policy": _policy(config, job),
        "data": {
            "max_input_seq_length": own.max_prompt_tokens,
            "train": {"data_path": str(job.tasks / "train.jsonl"), "env_name": NAME},
            "validation": {"data_path": str(job.tasks / "held_out.jsonl"), "env_name": NAME} if job.held_out else None,
        },
        "env": {NAME: _environment(config, job)},
        "logger": {"log_dir": str(job.directory / "logs")},
        "checkpointing": _checkpointing(config, job),
        "cluster": {
            "num_nodes": config.cluster.nodes,
            "gpus_per_node": config.world_size // config.cluster.nodes,
        },
    }


def _grpo(config: Config, job: Job) -> dict[str, Any]:
    own, steps = config.grpo, rollouts(config, job.train)
    return {
        "num_prompts_per_step": own.prompts_per_rollout,
        "num_generations_per_prompt": own.group_size,
        "max_num_steps": steps,
        # Its loader leaves out the last prompts of an epoch, which are no whole rollout.
        "max_num_epochs": math.ceil(steps / (job.train // own.prompts_per_rollout)),
        "normalize_rewards": own.scale_advantages,
        "adv_estimator": {"normalize_rewards": own.scale_advantages},
        "skip_reference_policy_logprobs_calculation": own.kl == 0,
        "val_period": _per_rollout(config, config.trainer.validate_every) if job.held_out else 0,
        "val_batch_size": max(1, job.held_out),
        "max_val_samples": job.held_out,
        "val_at_start": job.held_out > 0,
        "val_at_end": job.held_out > 0,
        "seed": config.run.seed,
    }


def _policy(config: Config, job: Job) -> dict[str, Any]:
    own, parallel, optim = config.grpo, config.parallel, config.optim
    longest = own.max_prompt_tokens + own.max_answer_tokens
    unit = parallel.tp * (2 * parallel.cp if parallel.cp > 1 else 1)
    # It counts the last token of an answer as well, and rounds each up to what the ranks share out.
    packed = math.ceil(max(own.seq_length, longest) / unit) * unit * own.micro_batch_size
    precision = "bfloat16" if config.trainer.precision == "bf16-mixed" else "float32"
    warmup = _rollouts_of(config, own.warmup_steps)
    return {
        "model_name": str(job.model),
        "tokenizer": {"name": str(job.model)},
        "train_global_batch_size": own.global_batch_size * own.group_size,
        "train_micro_batch_size": own.micro_batch_size,
        "logprob_batch_size": own.micro_batch_size,
        "generation_batch_size": own.rollout_batch_size,
        "max_total_sequence_length": longest,
        "make_sequence_length_divisible_by": unit,
        "precision": precision,
        "max_grad_norm": optim.clip_grad,
        "sequence_packing": {"train_mb_tokens": packed, "logprob_mb_tokens": packed},
        "megatron_cfg": {
            "tensor_model_parallel_size": parallel.tp,
            "pipeline_model_parallel_size": parallel.pp,
            "context_parallel_size": parallel.cp,
            "sequence_parallel": parallel.sequence_parallel,
            "pipeline_dtype": precision,
            "activation_checkpointing": own.recompute != "none",
            "recompute_granularity": "selective" if own.recompute == "selective" else "full",
            "optimizer": {
                "lr": own.lr,
                "min_lr": own.min_lr,
                "weight_decay": own.weight_decay,
                "adam_beta1": optim.beta1,
                "adam_beta2": optim.beta2,
                "clip_grad": optim.clip_grad,
                "bf16": precision == "bfloat16",
                "use_precision_aware_optimizer": precision == "bfloat16",
            },
            "scheduler": {
                "start_weight_decay": own.weight_decay,
                "end_weight_decay": own.weight_decay,
                "lr_decay_style": own.schedule,
                "lr_decay_iters": max(rollouts(config, job.train), warmup + 1),
                "lr_warmup_iters": warmup,
                # With this beginning Megatron's warm-up is lr (t + 1) / (w + 1), as in engine/schedules.py.
                "lr_warmup_init": own.lr / (warmup + 1) if warmup else 0.0,
            },
        },
        "generation": {
            "backend": own.rollouts,
            "max_new_tokens": own.max_answer_tokens,
            "temperature": own.temperature,
            "top_p": own.top_p,
            "top_k": own.top_k or None,
            "stop_token_ids": list(job.stop_ids),
            "stop_strings": list(own.stop) or None,
            "vllm_cfg": {"tensor_parallel_size": parallel.tp, "max_model_len": longest, "precision": precision},
            "vllm_kwargs": {"max_num_seqs": own.rollout_batch_size},
        },
    }


def _environment(config: Config, job: Job) -> dict[str, Any]:
    own = config.grpo
    return {
        "terms": [[asdict(term) for term in source.rewards] for source in own.sources],
        "rewards": asdict(own.rewards),
        "tokenizer": str(job.model),
        "stop_ids": list(job.stop_ids),
        "stop": list(own.stop),
        "answers": str(job.directory / "rollouts") if own.save_answers else None,
    }


def _checkpointing(config: Config, job: Job) -> dict[str, Any]:
    best, trainer = config.trainer.keep_best, config.trainer
    return {
        "checkpoint_dir": str(job.directory / "checkpoints"),
        "metric_name": "val:accuracy" if best else None,  # what it calls the mean reward; null: the newest are kept
        "keep_top_k": trainer.keep_last,
        "save_period": _per_rollout(config, trainer.validate_every if best else trainer.checkpoint_every),
        "checkpoint_must_save_by": _clock(trainer.max_hours),
    }


def _rollouts_of(config: Config, updates: int) -> int:
    return updates * config.grpo.global_batch_size // config.grpo.prompts_per_rollout


def _per_rollout(config: Config, updates: int) -> int:
    """A rhythm in updates as one in rollouts."""
    return max(1, _rollouts_of(config, updates))


def _clock(hours: float | None) -> str | None:
    """Hours as NeMo-RL writes them, DD:HH:MM:SS."""
    if hours is None:
        return None
    minutes, seconds = divmod(round(hours * 3600), 60)
    return f"{minutes // 1440:02}:{minutes // 60 % 24:02}:{minutes % 60:02}:{seconds:02}"
