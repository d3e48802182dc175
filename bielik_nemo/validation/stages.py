"""What must fit together in the pipeline: its stages, and the ways to prune."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from bielik_nemo.config import STAGES, Config
from bielik_nemo.keys import nearest
from bielik_nemo.quantization import FORMATS

_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
_HUB_NAME = re.compile(rf"{_NAME.pattern}/{_NAME.pattern}", re.ASCII)


def problems(config: Config) -> Iterator[str]:
    """Every problem as `key: found ..., allowed: ...`."""
    yield from _compensation(config)
    yield from _student(config)
    yield from _order(config)
    yield from _swap(config)
    yield from _search(config)
    if "merge" in config.pipeline.stages:
        yield from merge_problems(config)
    if "release" in config.pipeline.stages:
        yield from release_problems(config)
    yield from _formats(config)


def _formats(config: Config) -> Iterator[str]:
    found, stages = config.quantize.formats, config.pipeline.stages
    for index, name in enumerate(found):
        key = f"quantize.formats[{index}]"
        if name not in FORMATS:
            yield f"{key}: found {name!r}, allowed: {', '.join(FORMATS)}{nearest(name, list(FORMATS))}"
        elif name in found[:index]:
            yield f"{key}: found {name!r} again, allowed: each format once"
    if "quantize" not in stages:
        return
    if not found:
        yield f"quantize.formats: found none, allowed: some of {', '.join(FORMATS)}"
    if absent := [stage for stage in ("data", "export") if stage not in stages]:
        yield f"pipeline.stages: found quantize without {' and '.join(absent)}, allowed: with data and export"


def _order(config: Config) -> Iterator[str]:
    stages = config.pipeline.stages
    unknown = [stage for stage in stages if stage not in STAGES]
    for stage in unknown:
        yield f"pipeline.stages: found {stage!r}, allowed: {', '.join(STAGES)}{nearest(stage, STAGES)}"
    if not stages:
        yield f"pipeline.stages: found no stage, allowed: some of {', '.join(STAGES)}"
    ordered = [stage for stage in STAGES if stage in stages]
    if not unknown and stages != ordered:
        yield f"pipeline.stages: found {', '.join(stages)}, allowed: each once and in order: {', '.join(ordered)}"
    for name in ("swap_tokenizer", "adapt", "pretrain"):
        if name in stages and config.prune.streaming:
            yield f"prune.streaming: found True, allowed: False with {name} in pipeline.stages (it cuts model.source)"


def _swap(config: Config) -> Iterator[str]:
    """A source whose words are new can teach only what it has learnt with them."""
    stages = config.pipeline.stages
    if "swap_tokenizer" not in stages:
        return
    if not config.swap_tokenizer.tokenizer.strip():
        yield "swap_tokenizer.tokenizer: found none, allowed: a directory with the new tokenizer"
    taught = [name for name in ("teacher", "distill", "distill_long") if name in stages]
    if taught and "pretrain" not in stages:
        yield (
            f"pipeline.stages: found {taught[0]} with swap_tokenizer, allowed: with pretrain between them; the old "
            "model predicts other tokens, and the new one has not been trained yet"
        )
    if "sft" in stages and config.sft.forward_kl and "pretrain" not in stages:
        yield f"sft.forward_kl: found {config.sft.forward_kl:g}, allowed: 0 with swap_tokenizer and without pretrain"


def _compensation(config: Config) -> Iterator[str]:
    for part in ("attention", "ffn", "blocks", "rotation") if config.prune.streaming else ():
        if getattr(config.prune.compensation, part):
            yield f"prune.compensation.{part}: found True, allowed: False with prune.streaming=True (no model runs)"


def _student(config: Config) -> Iterator[str]:
    prune = config.prune
    if not prune.student:
        return
    without = {
        "prune.streaming": prune.streaming,
        "search in pipeline.stages": "search" in config.pipeline.stages,
        "prune.target (prune=none)": any(size is not None for size in asdict(prune.target).values()),
        "prune.drop_layers": prune.drop_layers,
    }
    for other, given in without.items():
        if given:
            yield f"prune.student: found {prune.student!r}, allowed: none with {other}"


def _search(config: Config) -> Iterator[str]:
    settings = config.prune.search
    if "search" not in config.pipeline.stages:
        return
    limits = ("max_parameters", "max_memory_gib", "max_latency_ms")
    if all(getattr(settings, name) is None for name in limits):
        yield f"prune.search: found no budget, allowed: one of {', '.join(f'prune.search.{name}' for name in limits)}"
    if settings.max_latency_ms is not None and not (settings.memory_bandwidth_gb_s or settings.latency_table):
        yield (
            f"prune.search.max_latency_ms: found {settings.max_latency_ms:g}, allowed: null, or together with "
            "prune.search.memory_bandwidth_gb_s or prune.search.latency_table"
        )
    if settings.distill_steps and config.prune.streaming:
        yield f"prune.search.distill_steps: found {settings.distill_steps}, allowed: 0 with prune.streaming=True"


def merge_problems(config: Config) -> Iterator[str]:
    """What is wrong with what is to be merged, for a run that merges."""
    merge, every = config.merge, config.trainer.snapshot_every
    count = (merge.snapshots or 1) + len(merge.models)
    if count < 2:
        yield "merge.models: found none, allowed: one at least, or merge.snapshots from 2 on: there is nothing to merge"
    elif merge.method == "slerp" and count != 2:
        found = f"{merge.snapshots or 1} of the pipeline and {len(merge.models)} in merge.models"
        yield f"merge.method: found 'slerp' with {count} models ({found}), allowed: with 2"
    if not merge.weight + sum(model.weight for model in merge.models):
        yield "merge.weight: found 0 here and in all of merge.models, allowed: a positive number in one of them"
    if merge.snapshots and not (every and {"sft", "dpo", "grpo"} & set(config.pipeline.stages)):
        leaves = "where sft, dpo or grpo in pipeline.stages leaves some (trainer.snapshot_every)"
        yield f"merge.snapshots: found {merge.snapshots}, allowed: 0, or more {leaves}"


def release_problems(config: Config) -> Iterator[str]:
    """What is wrong with what a release says, for a run that makes one."""
    release = config.release
    if "export" not in config.pipeline.stages:
        yield "pipeline.stages: found release without export, allowed: with it: there is nothing to publish"
    if not _NAME.fullmatch(release.name):
        yield f"release.name: found {release.name!r}, allowed: letters, digits, '.', '_' and '-', which name files"
    if release.base_model and not _HUB_NAME.fullmatch(release.base_model):
        yield f"release.base_model: found {release.base_model!r}, allowed: owner/name on the Hugging Face Hub, or none"
    try:
        canonicalize_license_expression(release.licence)
    except InvalidLicenseExpression:
        spdx = "an SPDX identifier such as Apache-2.0, or LicenseRef- and a name of your own"
        yield f"release.licence: found {release.licence!r}, allowed: {spdx}"
