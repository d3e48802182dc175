"""What must fit together in what is asked of a cluster: times, nodes of single stages, GPUs, memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from bielik_nemo.config import STAGES, Config
from bielik_nemo.keys import nearest
from bielik_nemo.validation import training

TIME = re.compile(r"(?:(\d+)-)?(\d{1,2}):(\d\d):(\d\d)")
MEMORY = re.compile(r"0|[1-9]\d*[MG]")
BATCHES = {"adapt": "data", "pretrain": "data", "teacher": "data", "distill": "data", "reference": "dpo"}
"""Stages whose batch stands under another key than their own."""
TRAINED = ("adapt", "pretrain", "teacher", "distill", "distill_long", "sft", "reference", "dpo", "grpo")
"""Stages that take `cluster.nodes`."""


def problems(config: Config) -> Iterator[str]:
    """Every problem as `key: found ..., allowed: ...`."""
    yield from _times(config)
    yield from _nodes(config)
    cluster = config.cluster
    if cluster.mem and not MEMORY.fullmatch(cluster.mem):
        yield f"cluster.mem: found {cluster.mem!r}, allowed: 0 (all of a node), or M or G such as 480G"
    if cluster.gpus == "none" and not cluster.exclusive and cluster.gpu_memory_gib:
        yield "cluster.exclusive: found False, allowed: True with cluster.gpus=none, where a node's GPUs are one job's"


def _times(config: Config) -> Iterator[str]:
    limits = {"cluster.time": config.cluster.time}
    limits |= {f"launch.time.{name}": time for name, time in config.launch.time.items()}
    for name in config.launch.time:
        yield from _unknown("launch.time", name, STAGES)
    for key, time in limits.items():
        if (limit := seconds(time)) is None:
            yield f"{key}: found {time!r}, allowed: hours:minutes:seconds, such as 04:00:00, or with days, 2-00:00:00"
        elif limit <= config.launch.save_before:
            yield f"{key}: found {time}, allowed: more than the {config.launch.save_before} s of launch.save_before"


def seconds(time: str) -> int | None:
    """Of a limit such as 1-12:00:00; None: it is none."""
    if not (found := TIME.fullmatch(time)):
        return None
    days, hours, minutes, rest = (int(part or 0) for part in found.groups())
    return 86400 * days + 3600 * hours + 60 * minutes + rest if max(minutes, rest) < 60 else None


def _nodes(config: Config) -> Iterator[str]:
    """Numbers of nodes of single stages, under which batches must still divide."""
    for name, nodes in config.launch.nodes.items():
        yield from _unknown("launch.nodes", name, TRAINED)
        if nodes < 1:
            yield f"launch.nodes.{name}: found {nodes}, allowed: a positive number"
        elif name in config.pipeline.stages and name in TRAINED:
            devices = config.world_size // config.cluster.nodes
            own = replace(config, cluster=replace(config.cluster, nodes=nodes, devices_per_node=devices))
            batch = f"{BATCHES.get(name, name)}.global_batch_size"
            for told in training.problems(own):
                if told.startswith(batch):
                    yield f"launch.nodes.{name}: found {nodes}, with which {told}"


def _unknown(key: str, name: str, known: Sequence[str]) -> Iterator[str]:
    if name not in known:
        yield f"{key}.{name}: found {name!r}, allowed: {', '.join(known)}{nearest(name, known)}"
