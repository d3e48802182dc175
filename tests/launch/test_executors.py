"""Executors: what a job asks Slurm for, on every kind of cluster, and when its script queues it again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bielik_nemo.config import Cluster, Config, Launch, Parallel, Run
from bielik_nemo.launch import executors, jobs
from bielik_nemo.launch.jobs import Job

RECORDS = Path("/runs/mine/launch/records")
ENV = {"PYTHONPATH": "/runs/mine/launch/code/abc"}


def job(stage: str = "distill", launch: dict[str, Any] | None = None, tp: int = 1, **cluster: Any) -> Job:
    """A stage's job on two nodes of four GPUs, with these settings."""
    known = {"account": "plg-x", "partition": "gpu", "nodes": 2, "devices_per_node": 4, "gpu_memory_gib": 80.0}
    config = Config(
        run=Run(name="mine", dir="/runs/mine"),
        parallel=Parallel(tp=tp),
        cluster=Cluster(**(known | cluster)),
        launch=Launch(**({"executor": "slurm"} | (launch or {}))),
    )
    return jobs.job(config, stage)


def made(of: Job):
    return executors.executor(of, RECORDS, ENV)


def test_training_takes_its_nodes_whole():
    found = made(job(qos="high", constraint="h100", reservation="ours", mem="480G", time="12:00:00"))
    assert (found.account, found.partition, found.qos, found.constraint) == ("plg-x", "gpu", "high", "h100")
    assert (found.nodes, found.ntasks_per_node, found.gpus_per_node, found.gres) == (2, 4, 4, None)
    assert (found.exclusive, found.mem, found.time) == (True, "480G", "12:00:00")
    assert found.additional_parameters == {"kill_on_invalid_dep": "yes", "requeue": True, "reservation": "ours"}
    assert (found.signal, found.retries) == ("USR1@300", executors.RETRIES)
    assert found.tunnel.job_dir == "/runs/mine/launch/records/experiments"
    assert found.job_name_prefix == "mine-"


def test_a_stage_on_part_of_a_node_takes_its_share():
    """One of four GPUs: a quarter of 480G, and the CPUs of one task. What is all of a node cannot be divided."""
    found = made(job("score", mem="480G", cpus_per_task=16))
    assert (found.nodes, found.ntasks_per_node, found.gpus_per_node, found.exclusive) == (1, 1, 1, None)
    assert (found.mem, found.cpus_per_task, found.srun_args) == ("120G", 16, ["--cpus-per-task=16"])
    assert made(job("score", mem="0")).mem is None
    assert made(job("export", tp=4, mem="0")).mem == "0"  # all four of them are the whole node


def test_a_search_that_distils_has_one_task_with_all_of_a_node():
    config = job("search", cpus_per_task=16).config
    config.prune.search.distill_steps = 10
    found = made(jobs.job(config, "search"))
    assert (found.ntasks_per_node, found.gpus_per_node, found.cpus_per_task) == (1, 4, 64)


@pytest.mark.parametrize(
    ("settings", "gpus", "gres"),
    [
        ({}, 4, None),
        ({"gpus": "gres"}, None, "gpu:4"),
        ({"gpus": "none"}, None, None),
        ({"gpu_memory_gib": 0.0}, None, None),
    ],
)
def test_ways_to_ask_for_gpus(settings, gpus, gres):
    found = made(job(**settings))
    assert (found.gpus_per_node, found.gres) == (gpus, gres)


def test_a_stage_without_gpu_goes_to_the_partition_of_cpus():
    found = made(job("data", cpu_partition="cpu"))
    assert (found.partition, found.gpus_per_node) == ("cpu", None)
    assert made(job("data")).partition == "gpu"
    assert made(job("score", cpu_partition="cpu")).partition == "gpu"


def test_environment():
    """The job's own names are last, so that they win; ranks meet at the head node, which NeMo-Run's script names."""
    found = made(job(env={"NCCL_DEBUG": "WARN"})).env_vars
    assert list(found) == ["NCCL_DEBUG", "PYTHONPATH", "PYTHONNOUSERSITE", "MASTER_ADDR", "MASTER_PORT"]
    assert found["MASTER_ADDR"] == "$head_node"
    shell = f"SLURM_JOB_ID=4312345; export MASTER_PORT={found['MASTER_PORT']}; echo $MASTER_PORT"
    assert subprocess.run(["bash", "-c", shell], capture_output=True, text=True).stdout == "22345\n"


def test_pyxis(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = {"container": "pyxis", "container_image": "/images/nemo.sqsh", "mounts": ["/models:/models:ro"]}
    found = made(job(**settings))
    assert found.container_image == "/images/nemo.sqsh"
    assert found.container_mounts == ["/models:/models:ro", "/runs/mine:/runs/mine", f"{tmp_path}:{tmp_path}"]
    assert found.container_env == list(found.env_vars)
    monkeypatch.chdir("/")
    assert made(job(**settings)).container_mounts == ["/models:/models:ro", "/runs/mine:/runs/mine"]
    for container in ("none", "apptainer"):
        assert made(job(**settings | {"container": container})).container_image is None


def test_local_and_torchrun():
    """On a path of its own: NeMo-Run starts the first torchrun that it finds."""
    alone = made(job("export", {"executor": "local"}, tp=2))
    assert (alone.ntasks_per_node, alone.launcher) == (1, None)
    ranks = made(job("export", {"executor": "torchrun"}, tp=2, env={"A": "1"}))
    assert (ranks.ntasks_per_node, ranks.launcher) == (2, "torchrun")
    assert ranks.env_vars["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert ranks.env_vars["A"] == "1"


def requeued(tmp_path: Path, attempts: int, failed: str = "", stopped: bool = False) -> tuple[bool, str]:
    """Whether a job is queued again, and what `failed` says then.

    Args:
        tmp_path: where the job's directory is.
        attempts: that there were before.
        failed: what the job's program leaves there.
        stopped: whether it stopped in time, and so begins to count anew.
    """
    config = job().config
    config.run.dir, config.launch.retries = str(tmp_path), 2
    mine = jobs.job(config, "distill")
    mine.directory.mkdir(parents=True)
    (mine.directory / "attempts").write_text("before\n" * attempts)
    (mine.directory / "failed").write_text("of an earlier time\n")
    (tmp_path / "scontrol").write_text(f"#!/bin/bash\necho $@ >{tmp_path}/asked\n")
    (tmp_path / "scontrol").chmod(0o755)
    program = [f"echo '{failed}' >$failed"] if failed else []
    program += ["rm $attempts"] if stopped else []
    lines = ["set +e", executors.guard(mine), *program, "exitcode=7", "set -e", 'scontrol requeue "4711"']
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-vx"], input="\n".join(lines), env=env, text=True, check=True, capture_output=True)
    told = mine.directory / "failed"
    asked = tmp_path / "asked"
    return asked.exists() and asked.read_text() == "requeue 4711\n", told.read_text() if told.exists() else ""


@pytest.mark.parametrize("attempts", [0, 1])
def test_a_crash_is_queued_again_twice(tmp_path, attempts):
    assert requeued(tmp_path, attempts) == (True, "")


def test_not_after_the_third_in_a_row(tmp_path):
    assert requeued(tmp_path, 2) == (False, "not done after 3 attempts, the last with status 7\n")


def test_stopping_in_time_is_no_crash(tmp_path):
    assert requeued(tmp_path, 5, stopped=True) == (True, "")


def test_not_where_the_program_says_what_must_be_mended(tmp_path):
    assert requeued(tmp_path, 0, failed="data.sources: found none") == (False, "data.sources: found none\n")
