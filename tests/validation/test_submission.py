"""What is refused before a job is made: what is missing, what a shell would not take literally, what is secret."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest

from bielik_nemo.config import Cluster, Config, Launch, Pipeline, Run
from bielik_nemo.validation import submission

IMAGES = {"none": "", "pyxis": "/images/nemo.sqsh", "apptainer": "/images/nemo.sif"}


def configured(executor: str = "slurm", name: str = "mine", run_dir: str = "/runs/mine", **settings: Any) -> Config:
    """A cluster that has all that a job needs, with these settings."""
    known = {"account": "plg-x", "partition": "gpu", "container": "pyxis", "devices_per_node": 8}
    known |= settings
    known.setdefault("container_image", IMAGES.get(known["container"], ""))
    return Config(run=Run(name=name, dir=run_dir), cluster=Cluster(**known), launch=Launch(executor=executor))


def told(**settings: Any) -> list[str]:
    return list(submission.problems(configured(**settings)))


@pytest.mark.parametrize("container", IMAGES)
def test_takes_what_is_right(container):
    mounts = ["/models:/models:ro", "/net/text:/data/text"]
    assert told(
        container=container,
        cpu_partition="cpu",
        constraint="h100&nvlink",
        env={"NCCL_DEBUG": "WARN"},
        mounts=mounts,
        python="/opt/venv/bin/python3",
        setup=["module load CUDA/12.8", "source /opt/venv/bin/activate"],
        srun_args=["--mpi=pmix"],
    ) == []  # fmt: skip


def test_takes_images_as_enroot_names_them():
    assert told(container_image="registry.example#team/nemo:25.07") == []


@pytest.mark.parametrize("name", ["account", "partition"])
def test_says_what_is_missing(name):
    assert told(**{name: ""}) == [f"cluster.{name}: found '', allowed: what the cluster's people call it"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"container_image": ""}, "cluster.container_image: found '', allowed with cluster.container=pyxis: a path"),
        ({"container": "apptainer", "container_image": "docker://nemo"}, "cluster.container_image: found 'docker://"),
        ({"container_image": "$(id)"}, "cluster.container_image: found '$(id)'"),
        ({"account": "a; rm -rf /"}, "cluster.account: found 'a; rm -rf /', allowed in a job script: letters, digits"),
        ({"partition": "gpu\n#SBATCH --x"}, "cluster.partition: found"),
        ({"qos": "`id`"}, "cluster.qos: found '`id`'"),
        ({"reservation": "a b"}, "cluster.reservation: found 'a b'"),
        ({"constraint": "a;b"}, "cluster.constraint: found 'a;b'"),
        (
            {"python": "python3", "container": "none"},
            "cluster.python: found 'python3', allowed: the path from the root",
        ),
        ({"python": "/opt/pypy"}, "cluster.python: found '/opt/pypy', allowed: the path of a Python in the image"),
        ({"srun_args": ["mpi=pmix"]}, "cluster.srun_args[0]: found 'mpi=pmix', allowed: an option of srun"),
        ({"env": {"A": "`id`"}}, "cluster.env.A: found '`id`'"),
        ({"env": {"A": "two words"}}, "cluster.env.A: found 'two words'"),
        ({"env": {"a b": "1"}}, "cluster.env.a b: found 'a b', allowed: capitals, digits and _"),
        ({"env": {"MASTER_PORT": "1"}}, "cluster.env.MASTER_PORT: found one that a job sets itself"),
        ({"env": {"SLURM_NTASKS": "1"}}, "cluster.env.SLURM_NTASKS: found one that a job sets itself"),
        ({"env": {"PYTHONPATH": "/x"}}, "cluster.env.PYTHONPATH: found one that a job sets itself"),
        ({"mounts": ["/a"]}, "cluster.mounts[0]: found '/a', allowed: /outside:/inside"),
        ({"mounts": ["models:/models"]}, "cluster.mounts[0]: found 'models:/models', allowed: /outside:/inside"),
        (
            {"container": "apptainer", "mounts": ["/a:/a:ro+rprivate"]},
            "cluster.mounts[0]: found '/a:/a:ro+rprivate', allowed at its end by Apptainer: ro, rw",
        ),
        ({"name": "my/run"}, "run.name: found 'my/run', allowed in a job's name"),
        ({"run_dir": "/runs/my run"}, "run.dir: found '/runs/my run', allowed in a job script: letters, digits"),
        ({"run_dir": "/runs/100%"}, "run.dir: found '/runs/100%'"),
        ({"run_dir": "/runs/a=1,b=2"}, "run.dir: found '/runs/a=1,b=2'"),
        ({"run_dir": "/nemo_run/mine"}, "run.dir: found '/nemo_run/mine', allowed: without /nemo_run"),
        ({"mounts": ["/a/nemo_run:/a"]}, "cluster.mounts[0]: found '/a/nemo_run:/a', allowed: without /nemo_run"),
        ({"setup": ["source /x/nemo_run/a"]}, "cluster.setup[0]: found 'source /x/nemo_run/a', allowed: without"),
    ],
)
def test_refuses(settings, expected):
    (found,) = told(**settings)
    assert found.startswith(expected)


def test_a_sweep_has_commas_in_its_folders_where_none_are_mounted():
    assert told(container="none", run_dir="/runs/optim.lr=0.1,run.seed=2") == []


def test_a_python_that_nemo_run_would_rename(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/home/x/nemo_run/bin/python")
    (found,) = told(container="none")
    assert re.match(r"this Python \(cluster.python\): found '/home/x/nemo_run/bin/python', allowed: without", found)


@pytest.mark.parametrize(
    "settings",
    [
        {"env": {"HF_TOKEN": "a1b2"}},
        {"env": {"WANDB_API_KEY": "a1b2"}},
        {"setup": ["export HF_TOKEN=a1b2"]},
        {"srun_args": ["--export=ALL,DB_PASSWORD=a1b2"]},
    ],
)
def test_a_secret_is_refused_and_not_repeated(settings):
    (found,) = told(**settings)
    assert "is written to a file; export " in found and "a1b2" not in found


def test_nemo_rl_submits_a_job_of_its_own():
    config = configured()
    config.pipeline, config.grpo.engine = Pipeline(["grpo"]), "nemo_rl"
    (found,) = submission.problems(config)
    assert found.startswith("grpo.engine: found nemo_rl, allowed among jobs: megatron")
    assert list(submission.nemo_rl(config)) == []
    config.cluster.container = "none"
    assert list(submission.nemo_rl(config)) == [
        "cluster.container: found none, allowed with grpo.engine=nemo_rl: pyxis"
    ]


def test_one_machine():
    assert told(executor="local", container="none", account="") == []
    found = told(executor="torchrun", nodes=2, run_dir="/my run")
    assert [line.partition(",")[0] for line in found] == [
        "launch.executor: found torchrun",
        "cluster.container: found pyxis",
        "run.dir: found '/my run'",
    ]
