"""The chain as jobs: what each asks for, and which it waits for."""

from __future__ import annotations

from pathlib import Path

import pytest

from bielik_nemo.config import STAGES, compose
from bielik_nemo.errors import ConfigError
from bielik_nemo.launch import jobs

FULL = ["model.source=builtin:tiny", "cluster.nodes=2", "cluster.devices_per_node=8", "cluster.gpu_memory_gib=80"]


def planned(*overrides: str, experiment: str = "bielik_minitron_7b") -> dict[str, jobs.Job]:
    config = compose(experiment, [*(FULL if experiment == "bielik_minitron_7b" else []), *overrides])
    return {job.stage: job for job in jobs.plan(config, config.pipeline.stages)}


def size(job: jobs.Job) -> tuple[int, int, int, bool]:
    return job.nodes, job.tasks_per_node, job.gpus_per_node, job.whole_nodes


def test_what_trains_takes_all_nodes_and_the_rest_one_copy_of_the_model():
    """Two nodes of eight: training 2 x 8; TP x PP = 4 x 2 elsewhere; scoring and pruning have PP alone."""
    found = planned("parallel.tp=4", "parallel.pp=2")
    trains, copy, pruned = (2, 8, 8, True), (1, 8, 8, True), (1, 2, 2, False)
    for name in ("distill", "sft", "reference", "dpo", "grpo"):
        assert size(found[name]) == trains, name
    assert {name: size(found[name]) for name in ("import_hf", "export")} == {"import_hf": copy, "export": copy}
    assert {name: size(found[name]) for name in ("score", "prune")} == {"score": pruned, "prune": pruned}
    assert size(found["evaluate"]) == (1, 4, 4, False)  # generates on one pipeline stage
    assert size(found["data"]) == (1, 1, 1, False)  # the partition has GPUs only


def test_what_computes_nothing_goes_where_there_are_no_gpus():
    found = planned("cluster.cpu_partition=cpu")
    without = {name for name, job in found.items() if not job.gpus_per_node}
    assert without == {"data", "chat", "preferences", "tasks"}
    assert not any(job.gpus_per_node for job in planned(experiment="tiny").values())


def test_a_stage_has_nodes_and_time_of_its_own():
    found = planned("launch.nodes={sft: 1}", "launch.time={sft: '12:00:00'}", "cluster.time=04:00:00")
    assert (size(found["sft"]), found["sft"].time) == ((1, 8, 8, True), "12:00:00")
    assert (size(found["dpo"]), found["dpo"].time) == ((2, 8, 8, True), "04:00:00")
    assert found["sft"].config.world_size == 8 and found["dpo"].config.world_size == 16
    assert found["sft"].directory == Path("runs/bielik_minitron_7b/launch/jobs/sft").absolute()


def test_a_search_that_distils_starts_its_own_processes_on_one_node():
    search = ["prune=auto", "prune.search.max_parameters=8e9"]
    found = planned(*search, "prune.search.distill_steps=10")["search"]
    assert size(found) == (1, 1, 8, True) and found.config.world_size == 8
    assert size(planned(*search, "prune.search.distill_steps=0", "cluster.cpu_partition=cpu")["search"]) == (
        1,
        1,
        0,
        False,
    )


def test_a_copy_may_span_nodes_if_it_fills_them():
    found = planned("parallel.tp=8", "parallel.pp=2")
    assert size(found["import_hf"]) == (2, 8, 8, True)
    with pytest.raises(
        ConfigError, match=r"^cluster\.devices_per_node: found 4, allowed for import_hf: what divides its 10"
    ):
        planned("parallel.tp=2", "parallel.pp=5", "cluster.devices_per_node=4", "cluster.nodes=5")


def test_each_waits_for_what_it_reads():
    found = planned()
    assert found["import_hf"].needs == ()
    assert found["score"].needs == ("import_hf", "data")
    assert set(found["distill"].needs) == {"import_hf", "data", "score", "prune"}
    assert set(found["chat"].needs) == {"import_hf"}  # beside pruning and distillation
    for name, job in found.items():
        assert all(STAGES.index(needed) < STAGES.index(name) for needed in job.needs)
