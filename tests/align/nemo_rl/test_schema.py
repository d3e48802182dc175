"""The schema that NeMo-RL's configuration is held against, and NeMo-RL's own from a checkout."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import upstream
import yaml
from jsonschema import Draft202012Validator

from bielik_nemo.align.nemo_rl.schema import check, schema
from bielik_nemo.errors import ConfigError

GOLDEN = Path(__file__).with_name("config.yaml")
PROGRAM = Path(__file__).parents[3] / "launch" / "nemo_rl_schema.py"


@pytest.fixture
def rendered() -> dict:
    found = yaml.safe_load(GOLDEN.read_text(encoding="utf-8"))
    del found["bielik_nemo"]
    return found


def test_is_a_schema_and_names_its_release():
    Draft202012Validator.check_schema(schema())
    assert schema()["version"] == "0.7.0"
    assert len(schema()["commit"]) == 40


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("grpo.num_prompt_per_step", 8, r"grpo: .*'num_prompt_per_step' was unexpected"),
        (
            "policy.megatron_cfg.tensor_parallel_size",
            2,
            r"policy.megatron_cfg: .*'tensor_parallel_size' was unexpected",
        ),
        ("policy.generation.vllm_cfg.max_len", 2, r"generation.vllm_cfg: .*'max_len' was unexpected"),
        ("grpo.seed", "7", r"grpo.seed: '7' is not of type 'integer'"),
        ("loss_fn.token_level_loss", 1, r"loss_fn.token_level_loss: 1 is not of type 'boolean'"),
        ("policy.megatron_cfg.optimizer.lr", "1e-6", r"optimizer.lr: '1e-6' is not of type 'number'"),
        ("checkpointing.pretrained_checkpoint", {"path": "/x", "format": "nemo"}, "'nemo' is not one of"),
        ("cluster.num_nodes", None, r"cluster.num_nodes: None is not of type 'integer'"),
    ],
)
def test_refuses_unknown_keys_and_other_types(rendered, key, value, told):
    check(rendered)
    *path, last = key.split(".")
    section = rendered
    for name in path:
        section = section[name]
    section[last] = value
    with pytest.raises(ConfigError, match=r"^NeMo-RL 0\.7\.0: ") as error:
        check(rendered)
    assert error.match(told)


def test_refuses_what_is_missing(rendered):
    required = [
        ("grpo", "max_num_steps"),
        ("policy", "make_sequence_length_divisible_by"),
        ("checkpointing", "metric_name"),
        ("logger", "monitor_gpus"),
    ]
    for section, key in required:
        less = copy.deepcopy(rendered)
        del less[section][key]
        with pytest.raises(ConfigError, match=f"'{key}' is a required property"):
            check(less)


@upstream.needed
def test_is_what_the_program_reads_from_nemo_rl():
    spec = importlib.util.spec_from_file_location("nemo_rl_schema", PROGRAM)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert program.schema(Path(upstream.CHECKOUT)) == json.loads(json.dumps(schema()))


@upstream.needed
def test_nothing_is_missing_that_nemo_rl_has_in_its_own_configuration(rendered):
    """Its code reads many keys that no type asks for: those of its examples stand in ours, or have a reason not to."""
    examples = Path(upstream.CHECKOUT) / "examples" / "configs"
    base, ours = (yaml.safe_load((examples / f"grpo_math_1B{name}.yaml").read_text()) for name in ("", "_megatron"))

    def keys(section: dict, prefix: str = "") -> set[str]:
        inner = [keys(value, f"{prefix}{name}.") for name, value in section.items() if isinstance(value, dict)]
        return {prefix + name for name in section}.union(*inner)

    theirs = keys(base) | keys(ours)
    without = (
        "env.",
        "data.",
        "data_plane",
        "on_policy_distillation",
        "defaults",
        "policy.generation.mcore_generation",
    )
    without += ("policy.optimizer.", "logger.wandb.", "logger.swanlab", "logger.mlflow", "policy.dtensor_cfg.")
    without += (
        "policy.draft.",
        "policy.megatron_cfg.peft.",
        "policy.megatron_cfg.fp8_cfg.",
        "policy.dynamic_batching.",
    )
    without += ("grpo.reward_shaping.", "grpo.reward_scaling.", "grpo.async_grpo.", "cluster.")
    without += ("policy.megatron_cfg.mtp_", "policy.generation.vllm_cfg.")
    missing = {key for key in theirs - keys(rendered) if not key.startswith(without)}
    assert missing == set()
