"""The command of a job: in a virtual environment, in a container of pyxis, and in one of Apptainer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bielik_nemo.config import Cluster, Config, Launch, Parallel, Run
from bielik_nemo.launch import command, jobs

CONFIG = "/runs/mine/launch/jobs/score/config.yaml"
JOB = ["-m", "bielik_nemo.job", CONFIG, "score"]


def words(executor: str = "slurm", gpu: float = 80.0, **cluster: Any) -> list[str]:
    """Of the stage `score`, on two ranks."""
    config = Config(
        run=Run(dir="/runs/mine"),
        parallel=Parallel(pp=2),
        cluster=Cluster(devices_per_node=4, gpu_memory_gib=gpu, container_image="/images/nemo.sif", **cluster),
        launch=Launch(executor=executor),
    )
    return command.words(jobs.job(config, "score"))


@pytest.mark.parametrize(
    ("settings", "python"),
    [
        ({}, sys.executable),
        ({"python": "/opt/venv/bin/python"}, "/opt/venv/bin/python"),
        ({"container": "pyxis"}, "python3"),
        ({"container": "pyxis", "python": "/opt/venv/bin/python"}, "/opt/venv/bin/python"),
    ],
)
def test_a_python_of_the_machine_or_of_the_image(settings, python):
    assert words(**settings) == [python, *JOB]


def test_apptainer(monkeypatch, tmp_path):
    """A shell takes every word as it is, and Apptainer sees the mounts, the run and the current directory."""
    monkeypatch.chdir(tmp_path)
    found = words(container="apptainer", mounts=["/models:/models:ro"])
    bound = f"/models:/models:ro,/runs/mine:/runs/mine,{tmp_path}:{tmp_path}"
    assert found == ["apptainer", "exec", "--nv", "--bind", bound, "/images/nemo.sif", "python3", *JOB]
    line = " ".join(["printf '%s\\n'", *found])
    assert subprocess.run(["bash", "-c", line], capture_output=True, text=True).stdout.splitlines() == found
    assert "--nv" not in words(container="apptainer", gpu=0.0)


def test_torchrun():
    """NeMo-Run gives torchrun `-m` and takes it from the path; this is what a person would type."""
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    assert words("torchrun") == [torchrun, "--standalone", "--nproc-per-node", "2", *JOB]
