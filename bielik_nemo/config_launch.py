"""Settings of where a run works: the machines, what starts processes there, and how work is handed to them.

See config.py, whose rules these follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional


@dataclass
class Cluster:
    """The machines, and how Slurm hands them out."""

    name: str = "local"
    nodes: int = 1  # of stages that train; launch.nodes has others for single ones
    devices_per_node: Optional[int] = None  # None: as many as parallel.tp * pp * cp
    architecture: str = "x86_64"  # of the nodes: x86_64, aarch64
    gpu_memory_gib: float = 0.0  # of one GPU; 0: no GPU
    gpu_peak_tflops: float = 0.0  # of one GPU in trainer.precision, without sparsity; 0: GPU-hours are not estimated
    price_per_gpu_hour: float = 0.0  # 0: no bill is estimated
    currency: str = "EUR"
    # From here on: of jobs that are submitted to Slurm.
    account: str = ""
    partition: str = ""
    cpu_partition: str = ""  # of stages that use no GPU; "": partition, with one GPU
    qos: str = ""
    reservation: str = ""
    constraint: str = ""
    time: str = "04:00:00"  # limit of a job; launch.time has others for single stages
    gpus: str = "gpus_per_node"  # how a job asks for them: gpus_per_node, gres (of type gpu), none (whole nodes only)
    exclusive: bool = True  # nodes are a job's own
    mem: str = ""  # of a node, such as 0 (all of it) or 480G; "": what the partition gives
    cpus_per_task: Optional[int] = None
    srun_args: list[str] = field(default_factory=list)  # such as --mpi=pmix
    container: str = "none"  # what a job's program runs in: none (cluster.python), pyxis, apptainer
    container_image: str = ""
    python: str = ""  # "": without a container this Python, in one python3
    setup: list[str] = field(default_factory=list)  # bash lines before a job's program, such as module load CUDA
    mounts: list[str] = field(default_factory=list)  # outside:inside a container; run.dir and the current one are too
    env: dict[str, str] = field(default_factory=dict)  # set in a job; secrets belong in the shell that submits it


@dataclass
class Launch:
    """How work is handed to the machines, by NeMo-Run."""

    executor: Optional[str] = None  # null: this process does it; a process each stage: local, torchrun; a job: slurm
    dry_run: bool = False  # write and show what would be submitted, and submit nothing
    nodes: dict[str, int] = field(default_factory=dict)  # {sft: 1}: of a stage that trains, instead of cluster.nodes
    time: dict[str, str] = field(default_factory=dict)  # {data: '12:00:00'}: of a stage, instead of cluster.time
    save_before: int = 300  # seconds before its limit in which a job saves, stops and is queued again
    retries: int = 2  # of a job that crashed, one after the other
    changes: str = "include"  # in the code, not committed: include (recorded by digest), refuse
    packages: list[str] = field(default_factory=list)  # of your own, such as rewards: directories, sent with the code
