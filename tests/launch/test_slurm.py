"""Jobs on Slurm: what `cluster` says goes into them, and what a shell would not take literally does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bielik_nemo.config import Cluster, Config, Run
from bielik_nemo.errors import ConfigError
from bielik_nemo.launch import slurm
from bielik_nemo.validation import submission


def configured(**settings: Any) -> Config:
    """A cluster that has all that a job needs, with these settings."""
    known = {"account": "plg-x", "partition": "gpu", "container_image": "/images/nemo_rl.sqsh", "devices_per_node": 8}
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


@pytest.mark.parametrize("name", ["account", "partition", "container_image"])
def test_says_what_is_missing(name):
    with pytest.raises(ConfigError, match=rf"^cluster\.{name}: found '', allowed: "):
        slurm.executor(configured(**{name: ""}), Path("/runs/mine/jobs"), {})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"account": "a; rm -rf /"}, "cluster.account: found 'a; rm -rf /', allowed in a job script"),
        ({"partition": "gpu\n#SBATCH --x"}, "cluster.partition: found"),
        ({"container_image": "$(id)"}, r"cluster.container_image: found '\$\(id\)'"),
        ({"env": {"A": "`id`"}}, "cluster.env.A: found '`id`'"),
        ({"env": {"A": "two words"}}, "cluster.env.A: found 'two words'"),
        ({"env": {"a b": "1"}}, "cluster.env.a b: found 'a b', allowed: capitals, digits and _"),
        ({"env": {"HF_TOKEN": "hf_x"}}, "cluster.env.HF_TOKEN: is written to a file; export HF_TOKEN in the shell"),
        ({"env": {"WANDB_API_KEY": "x"}}, "cluster.env.WANDB_API_KEY: is written to a file"),
        ({"mounts": ["/a"]}, "cluster.mounts.0.: found '/a', allowed: /outside:/inside"),
        ({"mounts": ["models:/models"]}, "cluster.mounts.0.: found 'models:/models', allowed: /outside:/inside"),
        ({"time": "4h"}, "cluster.time: found '4h', allowed: hours:minutes:seconds"),
    ],
)
def test_refuses(settings, told):
    with pytest.raises(ConfigError, match=told):
        slurm.executor(configured(**settings), Path("/runs/mine/jobs"), {})


def test_refuses_a_run_whose_path_a_shell_would_not_take():
    config = configured()
    config.run.dir = "/runs/my run"
    assert list(submission.problems(config)) == [
        "run.dir: found '/runs/my run', allowed in a job script: letters, digits and . / : , @ % + = # _ -"
    ]


def test_a_secret_is_not_repeated_in_the_message():
    (told,) = submission.problems(configured(env={"HF_TOKEN": "hf_secret"}))
    assert "hf_secret" not in told
