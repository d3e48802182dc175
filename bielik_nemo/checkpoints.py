"""What is wrong with the files of the models that a run reads: the source, what is merged, what is measured beside.

Each function gives a line for each problem. Nothing is loaded; see preflight.py, which asks them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from bielik_nemo import budget
from bielik_nemo.architecture import Architecture
from bielik_nemo.artifacts import MANIFEST
from bielik_nemo.config import Config
from bielik_nemo.data.builtin import MODELS, PREFIX, TOKENIZERS, resolve_model_source
from bielik_nemo.errors import CheckpointError, DataError
from bielik_nemo.validation.shapes import other_shape, source_architecture
from bielik_nemo.validation.stages import merge_problems

MERGEABLE = "a Hugging Face directory (config.json, *.safetensors) or a Megatron checkpoint (weights/.metadata)"
MEASURABLE = "a Hugging Face directory (config.json, *.safetensors) or that of a finished stage that leaves a model"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def absent_source(config: Config) -> Iterator[str]:
    """The source model is not here."""
    source = config.model.source
    if source.removeprefix(PREFIX) in MODELS and source.startswith(PREFIX):
        return
    try:
        resolve_model_source(source, Path())
    except CheckpointError as error:
        yield str(error)


def source(config: Config, tokenizer_needed: bool) -> Iterator[str]:
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
    yield from _weights("model.source", directory)
    yield from _tokenizer("model.source", directory, found.vocab_size, tokenizer_needed)


def _weights(key: str, directory: Path) -> Iterator[str]:
    index = directory / "model.safetensors.index.json"
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.exists() else set()
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        yield f"{key}: {index}: no index of shards: {error}"
        return
    missing = sorted(shard for shard in shards if not (directory / shard).is_file())
    if missing:
        yield f"{key}: {directory}: {len(missing)} of {len(shards)} shards are missing, first {missing[0]}"
    elif not any(directory.glob("*.safetensors")):
        yield f"{key}: {directory}: found no weights, allowed: *.safetensors files"


def _tokenizer(key: str, directory: Path, vocab_size: int, needed: bool) -> Iterator[str]:
    if needed and not any((directory / name).is_file() for name in TOKENIZER_FILES):
        yield f"{key}: {directory}: found no tokenizer, allowed: one of {', '.join(TOKENIZER_FILES)}"
    path = directory / "tokenizer.json"
    if not path.is_file():
        return
    try:
        largest = largest_id(path)
    except DataError as error:
        yield f"{key}: {error}"
        return
    if largest >= vocab_size:
        yield f"{key}: {path}: found token id {largest}, allowed: below the model's vocab_size={vocab_size}"


def largest_id(path: Path) -> int:
    """The largest token id of a tokenizer.json. Raises `DataError` when it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]  # a list by id for Unigram, otherwise a table
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
        return max(ids + [token["id"] for token in content.get("added_tokens") or ()])
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: no tokenizer can be read from it: {error}") from None


def absent_models(config: Config, wanted: Sequence[str]) -> Iterator[str]:
    """A model that is to be merged or measured is not here."""
    for stage, readers, models, allowed in (
        ("merge", {"merge"}, config.merge.models, MERGEABLE),
        ("evaluate", {"evaluate", "benchmark"}, config.evaluate.models, MEASURABLE),
    ):
        for index, model in enumerate(() if readers.isdisjoint(wanted) else models):
            if not Path(model.path).exists():
                yield f"{stage}.models[{index}].path: no such directory: {model.path!r}; allowed: {allowed}"


def models_to_merge(config: Config) -> Iterator[str]:
    """Problems of what is to be merged, also where `pipeline.stages` does not say so."""
    if "merge" not in config.pipeline.stages:
        yield from merge_problems(config)
    for index, model in enumerate(config.merge.models):
        key, path = f"merge.models[{index}].path", Path(model.path)
        if (path / "config.json").is_file():
            yield from _weights(key, path)
        elif path.exists() and not (path / "weights" / ".metadata").is_file():
            yield f"{key}: found {model.path!r}, allowed: {MERGEABLE}"


def other_shapes(config: Config, costs: budget.Budget) -> Iterator[str]:
    """Models of another shape than the one they are to be merged with, as far as it is known before a search."""
    stages = config.pipeline.stages
    if "search" in stages:
        return
    own, base = costs.target, config.distill_long.rotary_base
    if "distill_long" in stages and base:
        own = replace(own, rotary_base=base)
    for index, model in enumerate(config.merge.models):
        if not Path(model.path, "config.json").is_file():
            continue
        try:
            differing = other_shape(Architecture.from_hf(model.path), own)
        except CheckpointError as error:
            differing = str(error)
        if differing:
            yield f"merge.models[{index}].path: found {model.path!r}, allowed: a model of the same shape: {differing}"


def models_to_measure(config: Config) -> Iterator[str]:
    """Problems of the models that are measured beside the pipeline's own."""
    for index, model in enumerate(config.evaluate.models):
        key, path = f"evaluate.models[{index}].path", Path(model.path)
        if (path / "config.json").is_file():
            try:
                vocab_size = Architecture.from_hf(path).vocab_size
            except CheckpointError as error:
                yield f"{key}: {error}"
                continue
            yield from _weights(key, path)
            yield from _tokenizer(key, path, vocab_size, needed=True)
        elif path.exists() and not ((path / "architecture.json").is_file() and (path / MANIFEST).is_file()):
            yield f"{key}: found {model.path!r}, allowed: {MEASURABLE}"


def absent_tokenizers(config: Config, wanted: Sequence[str]) -> Iterator[str]:
    """Tokenizers, to be compared or to be taken, that are not here."""
    named: dict[str, str] = {}
    if "tokenizers" in wanted:
        named |= {"model.source": config.model.source} if "import_hf" not in wanted else {}
        named |= {f"tokenizers.compared.{name}": path for name, path in config.tokenizers.compared.items()}
    if "swap_tokenizer" in wanted:
        named["swap_tokenizer.tokenizer"] = config.swap_tokenizer.tokenizer
    files, builtin = ", ".join(TOKENIZER_FILES), [PREFIX + name for name in (*MODELS, *TOKENIZERS)]
    for key, path in named.items():
        if path not in builtin and not (path and any(Path(path, name).is_file() for name in TOKENIZER_FILES)):
            allowed = f"a directory with one of {files}, or {' or '.join(builtin)}"
            yield f"{key}: found no tokenizer in {path!r}, allowed: {allowed}"
