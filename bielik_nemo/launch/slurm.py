"""Slurm jobs from the keys of `cluster`, by NeMo-Run's executor.

NeMo-Run 0.11.1 writes names, paths and values into job scripts as they are, which a shell then reads: what a shell
would not take literally is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bielik_nemo.config import Config
from bielik_nemo.errors import ConfigError

if TYPE_CHECKING:
    from nemo_run import SlurmExecutor

LITERAL = re.compile(r"[\w./:,@%+=#-]*", re.ASCII)
"""What a shell takes as it is, also after a blank or a comma."""
NAME = re.compile(r"[A-Z_][A-Z0-9_]*", re.ASCII)  # NeMo-Run makes them so
TIME = re.compile(r"(\d+-)?\d{1,2}:\d\d:\d\d")
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|API_?KEY|(^|_)KEY$")


def problems(config: Config) -> Iterator[str]:
    """What keeps a job from being submitted, as `key: found ..., allowed: ...`."""
    cluster = config.cluster
    for name in ("account", "partition", "container_image"):
        if not getattr(cluster, name):
            yield f"cluster.{name}: found '', allowed: what the cluster's people call it"
    if not TIME.fullmatch(cluster.time):
        yield f"cluster.time: found {cluster.time!r}, allowed: hours:minutes:seconds, such as 04:00:00"
    values = {f"cluster.{name}": getattr(cluster, name) for name in ("account", "partition", "container_image")}
    values |= {"run.name": config.run.name, "run.dir": str(Path(config.run.dir).absolute())}
    values |= {f"cluster.mounts[{i}]": mount for i, mount in enumerate(cluster.mounts)}
    values |= {f"cluster.env.{name}": value for name, value in cluster.env.items()}
    for key, value in values.items():
        if not LITERAL.fullmatch(value):
            yield f"{key}: found {value!r}, allowed in a job script: letters, digits and . / : , @ % + = # _ -"
    for i, mount in enumerate(cluster.mounts):
        if not re.fullmatch(r"/[^:,]*:/[^:,]*(:[a-z+]+)?", mount):
            yield f"cluster.mounts[{i}]: found {mount!r}, allowed: /outside:/inside, both from the root"
    for name in cluster.env:
        if not NAME.fullmatch(name):
            yield f"cluster.env.{name}: found {name!r}, allowed: capitals, digits and _"
        elif SECRET.search(name):
            yield f"cluster.env.{name}: is written to a file; export {name} in the shell, whose environment Slurm takes"


def executor(config: Config, job_dir: Path, env: Mapping[str, str]) -> SlurmExecutor:
    """A job on all GPUs of `cluster`, submitted from here.

    Args:
        config: whose `cluster` it is.
        job_dir: where NeMo-Run keeps scripts and logs.
        env: set in the job, beside `cluster.env`.

    Raises:
        ConfigError: see `problems`.
    """
    from nemo_run import LocalTunnel, SlurmExecutor

    if found := list(problems(config)):
        raise ConfigError("\n".join(found))
    cluster, run_dir = config.cluster, Path(config.run.dir).absolute()
    return SlurmExecutor(
        account=cluster.account,
        partition=cluster.partition,
        time=cluster.time,
        nodes=cluster.nodes,
        ntasks_per_node=1,
        gpus_per_node=config.world_size // cluster.nodes,
        job_name_prefix="bielik-nemo-",
        container_image=cluster.container_image,
        container_mounts=[*cluster.mounts, f"{run_dir}:{run_dir}"],
        env_vars={**cluster.env, **env},
        tunnel=LocalTunnel(job_dir=str(job_dir)),
    )
