"""What would stop a run, found before it starts: at once, offline, without torch, and all of it, not only the first.

Adds the files to what validation.py says about the configuration alone: checkpoint, tokenizer, texts, run directory,
disk and memory.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bielik_nemo import budget
from bielik_nemo.architecture import Architecture
from bielik_nemo.artifacts import MANIFEST
from bielik_nemo.config import Config
from bielik_nemo.data.builtin import MODELS, PREFIX, resolve_model_source
from bielik_nemo.data.text import PACKAGE_DOCS
from bielik_nemo.errors import CheckpointError, ConfigError
from bielik_nemo.validation import problems, shape_problems, source_architecture

TEXT_SUFFIXES = (".jsonl", ".parquet", ".txt")
TEXTS = f"a {', '.join(TEXT_SUFFIXES)} file, a directory of them, or {PACKAGE_DOCS}"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Finding:
    """One thing that stops the run (level `error`) or that its owner should know (`warning`)."""

    level: str
    key: str
    message: str  # one line, which begins with the key


def require(config: Config, stages: Sequence[str]) -> None:
    """Raise `ConfigError` with every error that stops these stages, one per line."""
    errors = [finding.message for finding in findings(config, stages) if finding.level == "error"]
    if errors:
        raise ConfigError("\n".join(errors))


def findings(config: Config, stages: Sequence[str] | None = None) -> list[Finding]:
    """All findings, errors first.

    With `stages`, what these need must be here. Without, the whole pipeline is checked, maybe for another machine: when
    the checkpoint is not here, but `model.shape` says what it looks like, then missing files and disk are warnings.
    """
    errors, warnings = problems(config), []
    if not errors:  # paths and sizes that are impossible in themselves are not worth a second look
        wanted = config.pipeline.stages if stages is None else stages
        absent = list(_absent_source(config)) if "import_hf" in wanted else []
        elsewhere = bool(absent) and stages is None and config.model.shape is not None
        local = warnings if elsewhere else errors
        local += absent
        if "import_hf" in wanted and Path(config.model.source).is_dir():
            errors += _checkpoint(config, tokenizer_needed="data" in wanted)
        if "data" in wanted:
            local += _absent_texts(config)
            errors += _texts(config)
        errors += _run_dir(config)
        if costs := _costs(config, errors, wanted):
            local += _disk(config, costs, wanted)
            warnings += _memory(config, costs)
        warnings += _oddities(config)
    lines = [("error", line) for line in errors] + [("warning", line) for line in warnings]
    return [Finding(level, re.match(r"[\w.\[\]]*", line)[0], line) for level, line in lines]


def costs(config: Config) -> budget.Budget | None:
    """The budget, if the configuration is possible and the source's shape is known."""
    return None if problems(config) else _costs(config, [], config.pipeline.stages)


def _costs(config: Config, errors: list[str], wanted: Sequence[str]) -> budget.Budget | None:
    source = architecture(config)
    if source is None:
        return None
    if config.model.shape is None and (wrong := shape_problems(config, source, wanted)):
        errors += wrong
        return None
    return budget.estimate(config, source)


def architecture(config: Config) -> Architecture | None:
    """Shape of the source: `model.shape`, or else that of its checkpoint; None when neither can be read."""
    try:
        return source_architecture(config) or Architecture.from_hf(config.model.source)
    except (ConfigError, CheckpointError):
        return None


def _absent_source(config: Config) -> Iterator[str]:
    source = config.model.source
    if source.removeprefix(PREFIX) in MODELS and source.startswith(PREFIX):
        return
    try:
        resolve_model_source(source, Path())
    except CheckpointError as error:
        yield str(error)


def _checkpoint(config: Config, tokenizer_needed: bool) -> Iterator[str]:
    """Problems of a checkpoint directory: its config, weights and tokenizer."""
    directory = Path(config.model.source)
    try:
        found = Architecture.from_hf(directory)
    except CheckpointError as error:
        yield f"model.source: {error}"
        return
    given = source_architecture(config)
    for name in asdict(config.model.shape) if given else ():
        if getattr(given, name) != getattr(found, name):
            yield (
                f"model.shape.{name}: found {getattr(given, name)!r}, allowed: {getattr(found, name)!r}, "
                f"as in {directory / 'config.json'}, or model.shape=null"
            )
    yield from _weights(directory)
    yield from _tokenizer(directory, found.vocab_size, tokenizer_needed)


def _weights(directory: Path) -> Iterator[str]:
    index = directory / "model.safetensors.index.json"
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.exists() else set()
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        yield f"model.source: {index}: no index of shards: {error}"
        return
    missing = sorted(shard for shard in shards if not (directory / shard).is_file())
    if missing:
        yield f"model.source: {directory}: {len(missing)} of {len(shards)} shards are missing, first {missing[0]}"
    elif not any(directory.glob("*.safetensors")):
        yield f"model.source: {directory}: found no weights, allowed: *.safetensors files"


def _tokenizer(directory: Path, vocab_size: int, needed: bool) -> Iterator[str]:
    if needed and not any((directory / name).is_file() for name in TOKENIZER_FILES):
        yield f"model.source: {directory}: found no tokenizer, allowed: one of {', '.join(TOKENIZER_FILES)}"
    path = directory / "tokenizer.json"
    if not path.is_file():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]  # a list by id for Unigram, otherwise a table
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
        largest = max(ids + [token["id"] for token in content.get("added_tokens") or ()])
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        yield f"model.source: {path}: no tokenizer can be read from it: {error}"
        return
    if largest >= vocab_size:
        yield f"model.source: {path}: found token id {largest}, allowed: below the model's vocab_size={vocab_size}"


def _absent_texts(config: Config) -> Iterator[str]:
    for index, source in enumerate(config.data.sources):
        if source.path != PACKAGE_DOCS and not Path(source.path).exists():
            yield f"data.sources[{index}].path: no such file or directory: {source.path!r}; allowed: {TEXTS}"


def _texts(config: Config) -> Iterator[str]:
    if not config.data.sources:
        yield f"data.sources: found none, allowed: a list of paths, such as 'data.sources=[{{path:{PACKAGE_DOCS}}}]'"
    for index, source in enumerate(config.data.sources):
        path = Path(source.path)
        if source.path == PACKAGE_DOCS or not path.exists():
            continue
        files = path.rglob("*") if path.is_dir() else [path]
        first = next((file for file in files if file.suffix in TEXT_SUFFIXES and file.is_file()), None)
        if first is None:
            yield f"data.sources[{index}].path: found no text in {source.path!r}, allowed: {TEXTS}"
        elif not os.access(first, os.R_OK):
            yield f"data.sources[{index}].path: found {str(first)!r}, which this user may not read"


def _existing(path: Path) -> Path:
    """`path` or the nearest folder above it that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _run_dir(config: Config) -> Iterator[str]:
    there = _existing(Path(config.run.dir))
    if not there.is_dir():
        yield f"run.dir: found {config.run.dir!r}, allowed: a directory, but {there} is a file"
    elif not os.access(there, os.W_OK | os.X_OK):
        yield f"run.dir: found {config.run.dir!r}, allowed: a directory that can be written; {there} cannot"


def _disk(config: Config, costs: budget.Budget, wanted: Sequence[str]) -> Iterator[str]:
    there = _existing(Path(config.run.dir))
    to_do = {stage for stage in wanted if not Path(config.run.dir, stage, MANIFEST).exists()}
    free, need = shutil.disk_usage(there).free, sum(size for stage, size in costs.disk.items() if stage in to_do)
    if need > free:
        enough = f"at least about {budget.size_text(need)} (estimate)"
        yield f"run.dir: found {budget.size_text(free)} free at {there}, allowed: {enough}"


def _memory(config: Config, costs: budget.Budget) -> Iterator[str]:
    limit, need = config.cluster.gpu_memory_gib, sum(costs.memory.values()) / budget.GIB
    if limit and need > limit:
        largest = max(costs.memory, key=costs.memory.__getitem__)
        yield (
            f"cluster.gpu_memory_gib: found {limit:g}, allowed: at least about {need:.1f} (estimate, most of it "
            f"{largest}); raise parallel.tp or parallel.pp, or lower data.micro_batch_size"
        )


def _oddities(config: Config) -> Iterator[str]:
    devices = config.world_size // config.cluster.nodes
    if config.parallel.tp > devices:
        yield f"parallel.tp: found {config.parallel.tp}, more than the {devices} devices of a node: slow between nodes"
    if "prune" in config.pipeline.stages and not any(asdict(config.prune.target).values()):
        yield "prune.target: found no size, so nothing is pruned"
