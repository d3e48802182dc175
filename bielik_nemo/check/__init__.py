"""What a run needs of its cluster, stage by stage, before anything is queued: what does not fit, and what it costs.

Adds to `preflight`, which looks at the configuration and at files, what the jobs ask for: nodes and GPUs, memory of the
fullest rank, tokens per second, hours, GPU-hours, and how often a job is queued again at its limit. What a finished
stage of the run has measured stands beside the estimate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bielik_nemo import preflight
from bielik_nemo.artifacts import Manifest
from bielik_nemo.budget import GIB, Budget, compute, memory
from bielik_nemo.config import Config
from bielik_nemo.errors import ConfigError
from bielik_nemo.launch import jobs
from bielik_nemo.launch.jobs import Job
from bielik_nemo.preflight import Finding
from bielik_nemo.stages import GRAPH

FULL, NEARLY = 1.0, 0.9
"""Shares of a GPU's memory from which an estimate is an error, and a warning."""


@dataclass(frozen=True)
class Need:
    """What one stage needs.

    Attributes:
        job: what it asks of the cluster.
        memory: bytes by part, of the fullest rank; empty: no model is in memory.
        rate: tokens per second of all GPUs; None: not estimated.
        hours: from its beginning to its end; None: not estimated, or its tokens are not known yet.
        measured: metrics of the stage, where it has finished under this configuration or another.
    """

    job: Job
    memory: dict[str, float]
    rate: float | None
    hours: float | None
    measured: dict[str, Any]

    @property
    def gpus(self) -> int:
        """On all its nodes."""
        return self.job.nodes * self.job.gpus_per_node

    @property
    def gpu_hours(self) -> float | None:
        """Of all GPUs together."""
        return None if self.hours is None else self.hours * self.gpus

    @property
    def attempts(self) -> int | None:
        """Jobs that follow each other until it is done, each ending at its limit; None: its hours are not known."""
        if self.hours is None:
            return None
        usable = seconds(self.job.time) - self.job.config.launch.save_before * GRAPH[self.job.stage].trains
        return -int(-self.hours * 3600 // max(usable, 1))


def seconds(limit: str) -> int:
    """Of a time as Slurm writes it: [days-]hours:minutes:seconds."""
    days, _, clock = limit.rpartition("-")
    hours, minutes, rest = map(int, clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest


def needs(costs: Budget, stages: Sequence[str], libraries: float = 0.0) -> list[Need]:
    """What each stage needs.

    Args:
        costs: of the run.
        stages: which.
        libraries: bytes of a process without a model, where there is no GPU.

    Raises:
        ConfigError: the processes of a stage do not fill its nodes.
    """
    return [_need(costs, job, libraries) for job in jobs.plan(costs.config, stages)]


def _need(costs: Budget, job: Job, libraries: float) -> Need:
    stage, config = GRAPH[job.stage], job.config
    work = memory.work(config, job.stage, costs.source, costs.target)
    elsewhere = job.stage == "grpo" and config.grpo.engine == "nemo_rl"
    parts: dict[str, float] = {}
    if work and not elsewhere:
        tp, pp = (config.parallel.tp, config.parallel.pp) if stage.trains else stage.layout(config)
        parts = memory.fullest(memory.per_rank(work, tp, pp, libraries))
    peak, rate, hours = config.cluster.gpu_peak_tflops * 1e12, None, None
    flops = compute.flops(config, job.stage, costs.source, costs.target)
    if flops and peak and job.gpus_per_node:
        rate = peak * compute.ASSUMED_MFU * job.nodes * job.gpus_per_node / flops
        read = compute.tokens(config, job.stage) or _counted(config, job.stage)
        hours = None if read is None else read / rate / 3600
    manifest = Manifest.read(Path(config.run.dir) / job.stage)
    return Need(job, parts, rate, hours, manifest.metrics if manifest else {})


def _counted(config: Config, stage: str) -> float | None:
    """Tokens of a stage that trains for epochs, where its data are there; None: they are not."""
    source = {"sft": "chat", "reference": "preferences", "dpo": "preferences"}.get(stage)
    found = Manifest.read(Path(config.run.dir) / source) if source else None
    if found is None or (stage == "dpo" and config.dpo.max_steps):
        return None
    epochs = 1 if stage == "reference" else getattr(config, stage).epochs
    return epochs * found.metrics["train"]["tokens"]


def require(config: Config, stages: Sequence[str]) -> None:
    """Raise `ConfigError` with every error that stops these stages on the cluster, one per line."""
    preflight.require(config, stages)
    if costs := preflight.costs(config):
        errors = [line for level, line in _memory(needs(costs, stages)) if level == "error"]
        if errors:
            raise ConfigError("\n".join(errors))


def findings(config: Config, costs: Budget | None) -> list[Finding]:
    """All findings of `preflight` and, where it knows the costs, of memory; errors first."""
    found = preflight.findings(config)
    if costs:
        try:
            lines = list(_memory(needs(costs, config.pipeline.stages)))
        except ConfigError as error:
            lines = [("error", line) for line in str(error).splitlines()]
        found += [Finding(level, re.match(r"[\w.\[\]]*", line)[0], line) for level, line in lines]
    return sorted(found, key=lambda finding: finding.level)


def _memory(every: Sequence[Need]) -> Iterator[tuple[str, str]]:
    """Stages that do not fit into a GPU, or hardly."""
    for need in every:
        limit, size = need.job.config.cluster.gpu_memory_gib, sum(need.memory.values()) / GIB
        if not need.job.gpus_per_node or size <= NEARLY * limit:
            continue
        largest = max(need.memory, key=need.memory.__getitem__)
        wanted = f"{need.job.stage} needs about {size:.1f} GiB (estimate, most of it {largest})"
        if size > FULL * limit:
            mend = "raise parallel.tp or parallel.pp, or lower the micro-batch or the sequence length"
            yield "error", f"cluster.gpu_memory_gib: found {limit:g}, but {wanted}; {mend}"
        else:
            yield "warning", f"cluster.gpu_memory_gib: found {limit:g}, and {wanted}: {size / limit:.0%} of it"
