"""The graph of stages: declarations of it that can be checked without running one (tests/chain runs them)."""

from __future__ import annotations

import importlib.util
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from bielik_nemo.config import STAGES, Config, Launch, view
from bielik_nemo.stages import GRAPH, MODEL_STAGES, RANKED_BY, model_stage, needed

# Where a run lives, and how its stages are handed to machines; of these training reads what it needs, as one section.
READ_BY_NO_STAGE = {"run.name", "run.dir", *(f"launch.{each.name}" for each in fields(Launch))}


def leaves(section: Any, prefix: str = "") -> list[str]:
    found = []
    for each in fields(section):
        value = getattr(section, each.name)
        found += leaves(value, f"{prefix}{each.name}.") if is_dataclass(value) else [f"{prefix}{each.name}"]
    return found


def test_the_graph_has_all_stages_in_order():
    assert list(GRAPH) == STAGES
    assert all(name == stage.name for name, stage in GRAPH.items())
    assert all(importlib.util.find_spec(f"bielik_nemo.stages.{name}") for name in STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_what_a_stage_declares_exists(name: str):
    stage = GRAPH[name]
    assert view(Config(), stage.keys + stage.free)  # raises for a key that is none
    for other in (*stage.needs, *stage.uses):
        assert other in ("model", "source", "distilled", "tokenizer") or STAGES.index(other) < STAGES.index(name)
    assert stage.outputs and not set(stage.outputs) & set(stage.scratch)


def test_every_setting_is_read_by_a_stage_or_known_not_to_be():
    declared = tuple(f"{key}." for stage in GRAPH.values() for key in stage.keys + stage.free)
    inside = {key.rstrip(".").rpartition(".")[0] for key in declared}  # lists, whose items' keys are declared
    unread = {leaf for leaf in leaves(Config()) if not f"{leaf}.".startswith(declared) and leaf not in inside}
    assert unread == READ_BY_NO_STAGE


def test_stages_that_make_a_model_leave_it_where_it_is_looked_for():
    for name in MODEL_STAGES:
        assert "architecture.json" in GRAPH[name].outputs
        assert {"megatron", "hf"} & set(GRAPH[name].outputs)


@pytest.mark.parametrize("name", STAGES)
def test_snapshots_count_where_they_are_left(name: str):
    config = Config()
    assert GRAPH[name].snapshot_every(config) is None and "snapshots" not in GRAPH[name].results(config)
    config.trainer.snapshot_every = 5
    leaves = name in ("sft", "dpo", "grpo")
    assert (GRAPH[name].snapshot_every(config), "snapshots" in GRAPH[name].results(config)) == (
        5 if leaves else None,
        leaves,
    )


@pytest.mark.parametrize(
    "stages, origin, needs",
    [
        (STAGES, "merge", ["swap_tokenizer", "merge", "data"]),
        (["import_hf", "data", "pretrain", "export"], "pretrain", ["import_hf", "pretrain", "data"]),
        (["import_hf", "export"], "import_hf", ["import_hf"]),
        (["import_hf", "data", "score", "prune", "export"], "prune", ["import_hf", "prune", "data"]),
        (["import_hf", "data", "score", "prune", "distill"], "distill", ["import_hf", "distill", "data"]),
        (["export"], "import_hf", ["import_hf"]),
    ],
)
def test_the_last_model_of_the_pipeline_is_exported(stages: list[str], origin: str, needs: list[str]):
    config = Config()
    config.pipeline.stages = stages
    assert model_stage(config) == origin
    assert needed(GRAPH["export"], config) == needs


def test_other_stages_need_what_they_say():
    assert needed(GRAPH["distill"], Config()) == ["import_hf", "data", "score", "prune"]
    config = Config()
    config.pipeline.stages = STAGES
    assert needed(GRAPH["score"], config) == ["swap_tokenizer", "pretrain", "data"]
    assert needed(GRAPH["prune"], config) == ["pretrain", "score", "search"]


def test_what_the_source_is_and_with_what_it_begins():
    config = Config()
    config.pipeline.stages = ["import_hf", "swap_tokenizer", "data", "adapt", "pretrain", "export"]
    assert [needed(GRAPH[name], config) for name in config.pipeline.stages[1:]] == [
        ["import_hf"],
        ["swap_tokenizer"],
        ["swap_tokenizer", "data"],
        ["swap_tokenizer", "adapt", "data"],
        ["swap_tokenizer", "pretrain", "data"],
    ]
    config.pipeline.stages = [
        "import_hf",
        "data",
        "score",
    ]  # of stages that it does not have each begins with the first
    assert needed(GRAPH["adapt"], config) == needed(GRAPH["pretrain"], config) == ["import_hf", "data"]


def test_a_search_needs_all_that_its_candidates_read():
    """They train on `data` of which the scores may show nothing: with a calibration blend of its own, or more text."""
    read = {name for stage in RANKED_BY for name in (*GRAPH[stage].needs, *GRAPH[stage].uses)}
    assert read - set(RANKED_BY) - {"search"} == set(GRAPH["search"].needs)


def test_processes_of_each_stage():
    """TP 2, PP 3 and 12 devices: a model is on 6; only training uses both copies."""
    config = Config()
    config.parallel.tp, config.parallel.pp, config.cluster.devices_per_node = 2, 3, 12
    sizes = {name: stage.world_size(config) for name, stage in GRAPH.items()}
    expected = {"import_hf": 6, "data": 1, "score": 3, "search": 1, "prune": 3, "teacher": 12, "distill": 12}
    expected |= {"pretrain": 12, "distill_long": 12, "export": 6, "evaluate": 2, "benchmark": 1, "release": 1}
    expected |= {"chat": 1, "sft": 12, "preferences": 1, "reference": 12, "dpo": 12, "merge": 6}
    expected |= {"tasks": 1, "grpo": 12, "tokenizers": 1, "swap_tokenizer": 1, "adapt": 12, "quantize": 1}
    assert sizes == expected
