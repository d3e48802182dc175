"""Where NeMo-Run starts a job: a process of this machine, torchrun's processes, or Slurm's tasks.

Values go into job scripts as they are, which is why `validation.submission` refuses what a shell would not take
literally.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bielik_nemo.launch.jobs import ATTEMPTS, FAILED, Job
from bielik_nemo.launch.records import EXPERIMENTS
from bielik_nemo.stages import GRAPH

if TYPE_CHECKING:
    from nemo_run import LocalExecutor, SlurmExecutor

RETRIES = 1000
"""Of NeMo-Run's script, which knows no reason why a job ended; the guard in `setup` does, and decides."""

ADDRESS = {"MASTER_ADDR": "$head_node", "MASTER_PORT": "$((20000 + SLURM_JOB_ID % 10000))"}
"""Where ranks meet: on the first node, at a port of the job's own, below those that Linux hands out."""


def executor(job: Job, home: Path, env: Mapping[str, str]) -> LocalExecutor | SlurmExecutor:
    """What starts a job under its configuration's `launch.executor`.

    Args:
        job: what it asks for; its configuration is checked (validation).
        home: NeMo-Run's, in the run's directory.
        env: set for the job, beside `cluster.env`.
    """
    if job.config.launch.executor == "slurm":
        return slurm(job, home, env)
    return local(job, env)


def local(job: Job, env: Mapping[str, str]) -> LocalExecutor:
    """On this machine: one process, which starts the others itself, or torchrun with one for each rank."""
    from nemo_run import LocalExecutor, Packager

    cluster, ranks = job.config.cluster, job.config.launch.executor == "torchrun"
    # NeMo-Run looks for torchrun, and torchrun for nothing but itself, on the path.
    path = f"{Path(cluster.python or sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return LocalExecutor(
        ntasks_per_node=job.tasks_per_node if ranks else 1,
        launcher="torchrun" if ranks else None,
        env_vars={**cluster.env, **env, "PATH": path},
        packager=Packager(),
    )


def slurm(job: Job, home: Path, env: Mapping[str, str]) -> SlurmExecutor:
    """A job on Slurm, submitted from here: a task for each rank, queued again until it is done or that is no use."""
    from nemo_run import LocalTunnel, Packager, SlurmExecutor

    config, cluster = job.config, job.config.cluster
    variables = {**cluster.env, **env, "PYTHONNOUSERSITE": "1", **ADDRESS}
    flags = {"kill_on_invalid_dep": "yes", "requeue": True}  # else what waits for a job that failed waits for ever
    if cluster.reservation:
        flags["reservation"] = cluster.reservation
    srun_args, cpus = list(cluster.srun_args), cluster.cpus_per_task
    if cpus:
        cpus *= max(1, job.gpus_per_node // job.tasks_per_node)  # more than one where a task starts the ranks itself
        srun_args.append(f"--cpus-per-task={cpus}")  # srun does not take it from sbatch since Slurm 22.05
    pyxis = cluster.container == "pyxis"
    return SlurmExecutor(
        account=cluster.account,
        partition=cluster.partition if GRAPH[job.stage].gpu else cluster.cpu_partition or cluster.partition,
        qos=cluster.qos or None,
        constraint=cluster.constraint or None,
        time=job.time,
        nodes=job.nodes,
        ntasks_per_node=job.tasks_per_node,
        cpus_per_task=cpus,
        mem=memory(job),
        exclusive=job.whole_nodes or None,  # False would be written out
        gpus_per_node=job.gpus_per_node if job.gpus_per_node and cluster.gpus == "gpus_per_node" else None,
        gres=f"gpu:{job.gpus_per_node}" if job.gpus_per_node and cluster.gpus == "gres" else None,
        # To the job's steps and not its shell: that would end at once, and fail.
        signal=f"USR1@{config.launch.save_before}",
        retries=RETRIES,
        additional_parameters=flags,
        srun_args=srun_args,
        container_image=cluster.container_image if pyxis else None,
        container_mounts=mounts(job) if pyxis else [],
        container_env=list(variables) if pyxis else None,  # else the image's values would win
        setup_lines="\n".join([guard(job), *cluster.setup]),
        env_vars=variables,
        job_name_prefix=f"{config.run.name}-",
        tunnel=LocalTunnel(job_dir=str(home / EXPERIMENTS)),
        packager=Packager(),  # ours is sent along as it was checked (code.py)
        poll_estimated_start_time=False,
    )


def mounts(job: Job) -> list[str]:
    """What a container sees: `cluster.mounts`, the run's directory, and this one, where relative paths begin."""
    own = dict.fromkeys([Path(job.config.run.dir).absolute(), Path.cwd()])
    return [*job.config.cluster.mounts, *(f"{path}:{path}" for path in own if path != Path("/"))]


def memory(job: Job) -> str | None:
    """What a job asks of each node's memory: `cluster.mem`, or its devices' share where others may use the rest.

    None: what the partition gives; also for a share of all of it, which only Slurm knows.
    """
    mem, devices = job.config.cluster.mem, job.config.cluster.devices_per_node
    if job.whole_nodes or not mem:
        return mem or None
    if mem == "0":
        return None
    return f"{int(mem[:-1]) * max(job.tasks_per_node, job.gpus_per_node) // devices}{mem[-1]}"


def guard(job: Job) -> str:
    """Bash for the head of a job's script: it counts attempts, and does not let NeMo-Run go on for ever.

    NeMo-Run 0.11.1 calls `scontrol requeue` after every end but success; `failed` in the job's directory says why not.
    """
    return f"""
failed={job.directory / FAILED}
attempts={job.directory / ATTEMPTS}
rm -f $failed
date --iso-8601=seconds >>$attempts
scontrol() {{
    if [[ $1 == requeue && ! -f $failed && $(cat $attempts 2>/dev/null | wc -l) -gt {job.config.launch.retries} ]]; then
        echo "not done after $(wc -l <$attempts) attempts, the last with status $exitcode" >$failed
    fi
    if [[ $1 == requeue && -f $failed ]]; then
        echo "not queued again: $(<$failed)"
    else
        command scontrol "$@"
    fi
}}"""
