"""The job of NeMo-RL: what `cluster` says goes into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bielik_nemo.config import Cluster, Config, Run
from bielik_nemo.errors import ConfigError
from bielik_nemo.launch import slurm


def configured(**settings: Any) -> Config:
    """A cluster that has all that a job needs, with these settings."""
    known = {"account": "plg-x", "partition": "gpu", "container": "pyxis", "devices_per_node": 8}
    known["container_image"] = "/images/nemo_rl.sqsh"
    return Config(run=Run(name="mine", dir="/runs/mine"), cluster=Cluster(nodes=2, **(known | settings)))


def test_executor():
    mounts = ["/models:/models:ro", "/text:/data/text"]
    config = configured(mounts=mounts, env={"CPUS_PER_WORKER": "96"}, time="1-12:00:00")
    made = slurm.executor(config, Path("/runs/mine/jobs"), {"PYTHONPATH": "/code"})
    assert (made.account, made.partition, made.time, made.nodes) == ("plg-x", "gpu", "1-12:00:00", 2)
    assert (made.gpus_per_node, made.ntasks_per_node, made.exclusive) == (8, 1, True)
    assert made.container_image == "/images/nemo_rl.sqsh"
    assert made.container_mounts == [*mounts, "/runs/mine:/runs/mine"]
    assert made.env_vars == {"CPUS_PER_WORKER": "96", "PYTHONPATH": "/code"}
    assert made.tunnel.job_dir == "/runs/mine/jobs"


def test_refuses_what_validation_does():
    with pytest.raises(ConfigError, match=r"^cluster\.container: found none, allowed .*: pyxis$"):
        slurm.executor(configured(container="none"), Path("/runs/mine/jobs"), {})
