"""The recipe in NeMo-RL's configuration: every setting of `grpo` is in it, or refused."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bielik_nemo.align.nemo_rl.render import Job, render, rollouts
from bielik_nemo.config import Config, compose
from bielik_nemo.config_grpo import GRPO, Rewards, RewardTerm, TaskSource
from bielik_nemo.errors import ConfigError

GOLDEN = Path(__file__).with_name("config.yaml")
JOB = Job(Path("/run/grpo/nemo_rl"), Path("/run/grpo/nemo_rl/model/hf"), Path("/run/tasks"), 1000, 50, (2, 32001))
REWARDS = [RewardTerm("bielik_nemo.align.rewards.maths"), RewardTerm("bielik_nemo.align.rewards.language", 0.1)]


def configured(**settings: Any) -> Config:
    """A configuration with these settings of `grpo`."""
    own = GRPO(engine="nemo_rl", rollouts="vllm", sources=[TaskSource("tasks.jsonl", "pl", REWARDS)])
    return replace(Config(), grpo=replace(own, **settings))


def at(found: dict[str, Any], key: str) -> Any:
    for name in key.split("."):
        found = found[name]
    return found


def test_bielik_as_a_whole():
    """Bielik-Minitron-7B on two nodes of eight H200; written anew by `python tests/align/nemo_rl/test_render.py`."""
    assert render(minitron(), JOB) == yaml.safe_load(GOLDEN.read_text(encoding="utf-8"))


def minitron() -> Config:
    source = "{path: /tasks, rewards: [{function: bielik_nemo.align.rewards.maths}]}"
    overrides = ["grpo.engine=nemo_rl", "grpo.rollouts=vllm", "model.source=/models/bielik", f"grpo.sources=[{source}]"]
    return compose("bielik_minitron_7b", overrides)


CHANGED: dict[str, tuple[Any, str | None]] = {
    # A value other than the default, and where it is to be seen; None: it is refused.
    "engine": ("megatron", "not here"),
    "sources": ([TaskSource("b", "en", REWARDS[:1])], "env.bielik_nemo.terms"),
    "rewards": (Rewards(timeout_s=3), "env.bielik_nemo.rewards"),
    "epochs": (2.0, "grpo.max_num_steps"),
    "max_steps": (5, "grpo.max_num_steps"),
    "prompts_per_rollout": (256, "grpo.num_prompts_per_step"),
    "global_batch_size": (64, "policy.train_global_batch_size"),
    "passes_per_rollout": (2, None),
    "group_size": (4, "grpo.num_generations_per_prompt"),
    "rollouts": ("megatron", None),
    "rollout_batch_size": (32, "policy.generation.vllm_kwargs.max_num_seqs"),
    "max_prompt_tokens": (512, "data.max_input_seq_length"),
    "max_answer_tokens": (512, "policy.generation.max_new_tokens"),
    "temperature": (0.7, "policy.generation.temperature"),
    "top_p": (0.9, "policy.generation.top_p"),
    "top_k": (40, "policy.generation.top_k"),
    "stop": (["\n\n"], "policy.generation.stop_strings"),
    "seq_length": (16384, "policy.sequence_packing.train_mb_tokens"),
    "micro_batch_size": (2, "policy.train_micro_batch_size"),
    "recompute": ("none", "policy.megatron_cfg.activation_checkpointing"),
    "schedule": ("cosine", "policy.megatron_cfg.scheduler.lr_decay_style"),
    "lr": (2e-6, "policy.megatron_cfg.optimizer.lr"),
    "min_lr": (1e-7, "policy.megatron_cfg.optimizer.min_lr"),
    "warmup_steps": (3, "policy.megatron_cfg.scheduler.lr_warmup_iters"),
    "decay_steps": (2, None),
    "weight_decay": (0.1, "policy.megatron_cfg.optimizer.weight_decay"),
    "scale_advantages": (False, "grpo.adv_estimator.normalize_rewards"),
    "normalization": ("tokens", "loss_fn.token_level_loss"),
    "clip_low": (0.1, "loss_fn.ratio_clip_min"),
    "clip_high": (0.28, "loss_fn.ratio_clip_max"),
    "kl": (0.0, "loss_fn.reference_policy_kl_penalty"),
    "filter_groups": (False, "bielik_nemo.filter_groups"),
    "mismatch_tolerance": (0.1, "bielik_nemo.mismatch_tolerance"),
    "save_answers": (False, "env.bielik_nemo.answers"),
}


def test_every_setting_has_its_case():
    assert list(CHANGED) == [field.name for field in fields(GRPO)]


@pytest.mark.parametrize("name", [name for name in CHANGED if name != "engine"])
def test_every_setting_is_rendered_or_refused(name):
    value, key = CHANGED[name]
    assert value != getattr(configured().grpo, name)
    changed = configured(**{name: value})
    if key is None:
        with pytest.raises(ConfigError, match=rf"^grpo\.{name}: found {value}, allowed: .* with grpo.engine=nemo_rl"):
            render(changed, JOB)
    else:
        assert at(render(changed, JOB), key) != at(render(configured(), JOB), key)


@pytest.mark.parametrize(
    ("normalization", "by_token", "divisor"),
    [("answer", False, None), ("tokens", True, None), ("constant", True, 4096)],
)
def test_means(normalization, by_token, divisor):
    found = render(configured(normalization=normalization), JOB)
    assert found["loss_fn"]["token_level_loss"] is by_token
    assert found["bielik_nemo"]["max_tokens"] == divisor


def test_updates_and_rollouts():
    """1000 tasks twice, in rollouts of 128: ceil(2000 / 128) = 16; an epoch has 1000 // 128 = 7 whole ones, so that 16
    take 3. Of updates of 32 there are 4 to a rollout."""
    config = configured(
        epochs=2.0, prompts_per_rollout=128, global_batch_size=32, warmup_steps=8, max_prompt_tokens=2048
    )
    assert rollouts(config, 1000) == 16
    assert rollouts(replace(config, grpo=replace(config.grpo, max_steps=24)), 1000) == 6
    found = render(config, JOB)
    assert (found["grpo"]["max_num_steps"], found["grpo"]["max_num_epochs"]) == (16, 3)
    assert found["policy"]["train_global_batch_size"] == 32 * 8
    # Warm-up of 8 updates is one of 2 rollouts, at lr / 3, lr 2 / 3, lr.
    schedule = found["policy"]["megatron_cfg"]["scheduler"]
    assert (schedule["lr_warmup_iters"], schedule["lr_decay_iters"]) == (2, 16)
    assert schedule["lr_warmup_init"] == pytest.approx(1e-6 / 3)
    assert found["grpo"]["val_period"] == found["checkpointing"]["save_period"] == 100 // 4


def test_without_divergence_no_reference_is_kept():
    assert render(configured(kl=0.0), JOB)["grpo"]["skip_reference_policy_logprobs_calculation"] is True
    assert render(configured(), JOB)["grpo"]["skip_reference_policy_logprobs_calculation"] is False


def test_without_held_out_tasks_nothing_is_measured():
    found = render(configured(), replace(JOB, held_out=0))
    assert found["data"]["validation"] is None
    assert (found["grpo"]["val_period"], found["grpo"]["val_at_start"], found["grpo"]["val_at_end"]) == (
        0,
        False,
        False,
    )


def test_layout():
    config = configured()
    config.parallel.tp, config.parallel.pp, config.parallel.cp = 2, 2, 2
    config.cluster.nodes, config.cluster.devices_per_node = 2, 8
    found = render(config, JOB)
    megatron = found["policy"]["megatron_cfg"]
    sizes = [
        megatron[f"{name}_size"] for name in ("tensor_model_parallel", "pipeline_model_parallel", "context_parallel")
    ]
    assert sizes == [2, 2, 2]
    assert found["policy"]["make_sequence_length_divisible_by"] == 2 * 2 * 2  # Megatron cuts a sequence into 2 cp parts
    config.grpo.seq_length = 2048 + 4096 - 1  # the predictions of the longest task, of 6144 tokens
    assert render(config, JOB)["policy"]["sequence_packing"]["train_mb_tokens"] == 6144
    assert found["policy"]["generation"]["vllm_cfg"]["tensor_parallel_size"] == 2
    assert found["cluster"] == {"num_nodes": 2, "gpus_per_node": 8}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"schedule": "wsd"}, "grpo.schedule: found wsd, allowed: constant, cosine"),
        ({"prompts_per_rollout": 256, "max_steps": 3}, "grpo.max_steps: found 3, allowed: multiples of 2"),
        ({"prompts_per_rollout": 256, "warmup_steps": 1}, "grpo.warmup_steps: found 1, allowed: multiples of 2"),
        ({"prompts_per_rollout": 1024, "global_batch_size": 1024}, "found 1024, allowed: up to 1000, the tasks within"),
    ],
)
def test_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        render(configured(**settings), JOB)


def test_the_best_checkpoint_is_one_that_was_measured():
    config = configured()
    config.trainer.keep_best, config.trainer.validate_every = True, 30
    found = render(config, JOB)
    assert (found["checkpointing"]["metric_name"], found["bielik_nemo"]["keep_best"]) == ("val:accuracy", True)
    assert found["checkpointing"]["save_period"] == found["grpo"]["val_period"] == 30
    with pytest.raises(ConfigError, match=r"trainer\.keep_best: found True, allowed: False where no task is held out"):
        render(config, replace(JOB, held_out=0))


def test_refuses_answers_that_do_not_share_out():
    config = configured(global_batch_size=1, prompts_per_rollout=1, group_size=4)
    config.cluster.devices_per_node = 3
    with pytest.raises(ConfigError, match=r"global_batch_size: found 1, .* data-parallel size 3"):
        render(config, JOB)


def test_time_limit():
    config = configured()
    config.trainer.max_hours = 26.5025
    assert render(config, JOB)["checkpointing"]["checkpoint_must_save_by"] == "01:02:30:09"


if __name__ == "__main__":
    GOLDEN.write_text(yaml.safe_dump(render(minitron(), JOB), sort_keys=False))
