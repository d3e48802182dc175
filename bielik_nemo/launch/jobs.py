"""What each stage of a pipeline asks of a cluster, and which others it waits for: the chain as a graph of jobs.

A stage that trains takes `cluster.nodes` (or its own `launch.nodes`) whole, a process for each device. Any other takes
the devices of one copy of the model, and one that computes nothing on a GPU takes none. A search that distils its
candidates starts their processes itself, on one node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bielik_nemo.config import Config
from bielik_nemo.errors import ConfigError
from bielik_nemo.stages import GRAPH, needed

DIRECTORY = "launch"
"""In a run's directory: all that belongs to its jobs."""
FAILED = "failed"
"""In a job's directory: why it must not be queued again."""
ATTEMPTS = "attempts"
"""In a job's directory: when each attempt began, since the newest checkpoint."""
CANCELLED = "cancelled"
"""In a job's directory: the number of the job that `bielik-nemo cancel` has ended."""
FROM = "BIELIK_NEMO_FROM"
"""Names, in a job, the directory from which it was submitted, where relative paths begin."""


@dataclass(frozen=True)
class Job:
    """One stage as a job.

    Attributes:
        stage: its name.
        config: of the run, with the nodes that are this stage's.
        nodes: that it asks for.
        tasks_per_node: processes on each, one for each device that it uses.
        gpus_per_node: that it asks for; 0: none.
        whole_nodes: whether no other job may be on them.
        time: limit.
        needs: stages that must have ended well before, if they are jobs too.
    """

    stage: str
    config: Config
    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    whole_nodes: bool
    time: str
    needs: tuple[str, ...]

    @property
    def directory(self) -> Path:
        """Where the job's own files are: its configuration, and how its attempts went."""
        return Path(self.config.run.dir).absolute() / DIRECTORY / "jobs" / self.stage


def plan(config: Config, stages: Sequence[str]) -> list[Job]:
    """The jobs of these stages, in order.

    Raises:
        ConfigError: one copy of the model does not fill its last node.
    """
    return [job(config, name) for name in stages]


def job(config: Config, name: str) -> Job:
    """The job of a stage; see `plan`."""
    cluster, stage = config.cluster, GRAPH[name]
    devices = config.world_size // cluster.nodes
    ranks = name == "search" and config.prune.search.distill_steps > 0
    if stage.trains:
        nodes, tasks = config.launch.nodes.get(name, cluster.nodes), devices
    elif ranks:
        nodes, tasks = 1, 1
    else:
        processes = stage.world_size(config)
        nodes = -(-processes // devices)
        tasks = processes // nodes
        if nodes * tasks != processes:
            raise ConfigError(
                f"cluster.devices_per_node: found {devices}, allowed for {name}: what divides its {processes} "
                "processes (parallel.tp * parallel.pp)"
            )
    computes = stage.gpu and (ranks or name != "search")
    gpus = devices if ranks else tasks
    if not cluster.gpu_memory_gib or (cluster.cpu_partition and not computes):
        gpus = 0
    return Job(
        stage=name,
        config=replace(config, cluster=replace(cluster, nodes=nodes, devices_per_node=devices)),
        nodes=nodes,
        tasks_per_node=tasks,
        gpus_per_node=gpus,
        whole_nodes=cluster.exclusive and (gpus == devices or nodes > 1 or (gpus > 0 and cluster.gpus == "none")),
        time=config.launch.time.get(name, cluster.time),
        needs=tuple(needed(stage, config)),
    )
