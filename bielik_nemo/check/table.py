"""What `bielik-nemo check` prints: models, layout, stages, memory by part, disk. What is estimated says so."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from bielik_nemo.architecture import Architecture
from bielik_nemo.budget import GIB, Budget, compute, size_text
from bielik_nemo.budget.ranks import parameters
from bielik_nemo.check import Need
from bielik_nemo.check.layout import Layout
from bielik_nemo.config import Config

PACED = ("adapt", "pretrain", "distill_long", "sft", "dpo", "grpo")
"""Stages with a length of their own."""
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "teacher", "reference", "KV cache", "runtime")


def lines(costs: Budget, every: Sequence[Need], built: Layout | None) -> Iterator[str]:
    """The whole answer, line by line."""
    config = costs.config
    yield _model("source", costs.source)
    yield _model("target", costs.target)
    yield from _tokens(config)
    if built:
        yield from _layout(config, built)
    yield ""
    yield from _stages(config, every)
    yield ""
    yield from _memory(config, every)
    yield ""
    yield f"disk    {size_text(sum(costs.disk.values()))} (estimate):"
    sizes = ", ".join(f"{stage} {size_text(size)}" for stage, size in costs.disk.items())
    yield from textwrap.wrap(sizes, 112, initial_indent=" " * 8, subsequent_indent=" " * 8)
    yield from _measured(every)


def _model(name: str, model: Architecture) -> str:
    once = f"{model.num_parameters('once'):,} with one embedding matrix"
    return f"{name}  {model.num_parameters():,} parameters ({once})"


def _tokens(config: Config) -> Iterator[str]:
    """How tokens are counted, and where nobody can yet."""
    for stage in config.pipeline.stages:
        own = getattr(config, stage, None)
        paced = config if stage == "distill" else config.paced_by(own) if stage in PACED else None
        if paced is None:
            continue
        if count := compute.tokens(config, stage):
            size = f"{paced.trainer.max_steps:,} steps * {paced.data.global_batch_size:,} sequences"
            yield f"{stage}  {count:,} tokens = {size} * {paced.data.seq_length:,}"
        else:
            often = f"{own.max_steps:,} steps" if own.max_steps else f"{own.epochs:g} epochs"
            yield f"{stage}  {often}: its tokens are known once its data are there"


def _layout(config: Config, built: Layout) -> Iterator[str]:
    parallel = config.parallel
    split = f"tp {parallel.tp}, pp {parallel.pp}, cp {parallel.cp}, dp {config.data_parallel_size}"
    yield f"layout  {split} on {config.world_size} ranks; as Megatron builds it, on every tensor rank:"
    for stage in range(parallel.pp):
        held = (
            f"{name} {ranks[stage][0]['num_layers']} layers, {parameters(ranks[stage][0]):,} parameters"
            for name, ranks in built.models.items()
        )
        yield f"        pipeline rank {stage}: {'; '.join(held)}"


def _stages(config: Config, every: Sequence[Need]) -> Iterator[str]:
    cluster = config.cluster
    devices = "GPUs" if cluster.gpu_memory_gib else "ranks"
    bill = [cluster.currency] if cluster.price_per_gpu_hour else []
    rows = [["stage", "nodes", devices, "memory", "tokens/s", "hours", "GPU-hours", *bill, "jobs"]]
    for need in every:
        job, size, cost = need.job, sum(need.memory.values()), need.gpu_hours
        count = job.gpus_per_node if cluster.gpu_memory_gib else job.tasks_per_node
        rows.append(
            [
                job.stage,
                str(job.nodes),
                f"{job.nodes * count}",
                size_text(size) if size else "-",
                f"{need.rate:,.0f}" if need.rate else "-",
                f"{need.hours:,.1f}" if need.hours is not None else "-",
                f"{cost:,.0f}" if cost is not None else "-",
                *([f"{cost * cluster.price_per_gpu_hour:,.0f}" if cost is not None else "-"] if bill else []),
                f"{need.attempts} of {job.time}" if need.attempts else f"? of {job.time}",
            ]
        )
    total = sum(need.gpu_hours or 0 for need in every)
    if total:
        paid = [f"{total * cluster.price_per_gpu_hour:,.0f}"] if bill else []
        rows.append(["what is known", "", "", "", "", "", f"{total:,.0f}", *paid, ""])
    yield from _columns(rows)
    if cluster.gpu_peak_tflops:
        yield (
            f"tokens/s, hours: an estimate, assuming {compute.ASSUMED_MFU:.0%} of {cluster.gpu_peak_tflops:g} TFLOP/s; "
            "-: not known here"
        )


def _memory(config: Config, every: Sequence[Need]) -> Iterator[str]:
    limit = config.cluster.gpu_memory_gib
    yield f"GiB of the fullest rank{f', of {limit:g} of a GPU' if limit else ''} (estimate):"
    used = [name for name in PARTS if any(need.memory.get(name) for need in every)]
    rows = [["stage", *used, "all"]]
    for need in every:
        if need.memory:
            sizes = [need.memory.get(name, 0) for name in used]
            rows.append([need.job.stage, *(f"{size / GIB:,.2f}" for size in (*sizes, sum(sizes)))])
    yield from _columns(rows)


def _measured(every: Sequence[Need]) -> Iterator[str]:
    """What finished stages say of the estimate."""
    for need in every:
        peak, estimated = need.measured.get("peak_memory_gib"), sum(need.memory.values()) / GIB
        if peak and estimated:
            beside = f"estimated {estimated:.2f} ({estimated / peak - 1:+.0%})"
            yield f"measured by {need.job.stage}: {peak:.2f} GiB, {beside}"
        rate = need.measured.get("tokens_per_second")
        if rate and need.rate:
            yield f"measured by {need.job.stage}: {rate:,.0f} tokens/s, estimated {need.rate:,.0f}"


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as text, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        yield "  ".join([first.ljust(widths[0]), *(each.rjust(w) for each, w in zip(rest, widths[1:], strict=True))])
