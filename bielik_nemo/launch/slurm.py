"""The Slurm job of NeMo-RL from the keys of `cluster`, by NeMo-Run's executor: a Ray cluster, not ranks of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bielik_nemo.config import Config
from bielik_nemo.errors import ConfigError
from bielik_nemo.validation import submission

if TYPE_CHECKING:
    from nemo_run import SlurmExecutor


def executor(config: Config, job_dir: Path, env: Mapping[str, str]) -> SlurmExecutor:
    """A job that takes the machines of `cluster` whole, submitted from here.

    Args:
        config: whose `cluster` it is.
        job_dir: where NeMo-Run keeps scripts and logs.
        env: set in the job, beside `cluster.env`.

    Raises:
        ConfigError: see `submission.nemo_rl`.
    """
    from nemo_run import LocalTunnel, SlurmExecutor

    if found := list(submission.nemo_rl(config)):
        raise ConfigError("\n".join(found))
    cluster, run_dir = config.cluster, Path(config.run.dir).absolute()
    return SlurmExecutor(
        account=cluster.account,
        partition=cluster.partition,
        time=cluster.time,
        nodes=cluster.nodes,
        ntasks_per_node=1,
        gpus_per_node=config.world_size // cluster.nodes,
        exclusive=True,
        job_name_prefix="bielik-nemo-",
        container_image=cluster.container_image,
        container_mounts=[*cluster.mounts, f"{run_dir}:{run_dir}"],
        env_vars={**cluster.env, **env},
        tunnel=LocalTunnel(job_dir=str(job_dir)),
    )
