"""What a job runs on every rank: this package's job.py, in a virtual environment or a container.

A container of pyxis is srun's business and stands in the executor; one of Apptainer is a command of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bielik_nemo.launch.executors import mounts
from bielik_nemo.launch.jobs import Job

if TYPE_CHECKING:
    from nemo_run import Script

PROGRAM = "bielik_nemo.job"


def script(job: Job) -> Script:
    """The program of a job with its configuration, which must be in the job's directory, and its stage."""
    from nemo_run import Script

    cluster = job.config.cluster
    arguments = [str(job.directory / "config.yaml"), job.stage]
    if cluster.container == "apptainer":
        flags = ["--nv"] if job.gpus_per_node else []
        flags += ["--bind", ",".join(mounts(job))]
        python = cluster.python or "python3"
        return Script(
            path="exec",
            args=[*flags, cluster.container_image, python, "-m", PROGRAM, *arguments],
            entrypoint="apptainer",
        )
    python = cluster.python or (sys.executable if cluster.container == "none" else "python3")
    return Script(path=PROGRAM, args=arguments, entrypoint=python, m=True)


def words(job: Job) -> list[str]:
    """The command of a job on one rank or, with torchrun, on all."""
    cluster = job.config.cluster
    command = script(job).to_command(with_entrypoint=True)
    if job.config.launch.executor != "torchrun":
        return command
    torchrun = str(Path(cluster.python or sys.executable).with_name("torchrun"))
    return [torchrun, "--standalone", "--nproc-per-node", str(job.tasks_per_node), *command[1:]]
