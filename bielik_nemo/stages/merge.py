"""One model of several of the same shape: the pipeline's own, or some of its snapshots, and others.

The sources are read tensor by tensor as Hugging Face directories, into which Megatron checkpoints are written first.

Leaves `hf/`, `architecture.json` and `merge.json`: what was merged, by its digest, with which weights, and with `slerp`
the angle between each pair of tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.data.tokenizer import check_same_words
from bielik_nemo.engine import checkpoint, convert, distributed, merging, model, snapshots
from bielik_nemo.errors import ConfigError
from bielik_nemo.stages import model_stage, tokenizer_beside
from bielik_nemo.validation.shapes import other_shape


@dataclass(frozen=True)
class Source:
    """A model to be merged: what it is called, where it is, and its weight."""

    name: str
    path: Path  # a Hugging Face directory or a Megatron checkpoint
    weight: float

    @property
    def is_hf(self) -> bool:
        """Whether it is a Hugging Face directory."""
        return (self.path / "config.json").is_file()


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Merge, and record of what.

    Raises:
        ConfigError: there are fewer snapshots than wanted, or a model has another shape.
        CheckpointError: a model is incomplete or damaged.
        DataError: a model has another tokenizer.
    """
    here, origin = run_dir / "merge", run_dir / model_stage(config, "merge")
    a = Architecture.from_json(origin / "architecture.json")
    tokenizer = run_dir / config.tokenizer_stage / "tokenizer"
    sources = own(config, origin)
    for index, each in enumerate(config.merge.models):
        source = Source(each.path, Path(each.path), each.weight)
        check(source, f"merge.models[{index}].path", a, tokenizer)
        sources.append(source)
    readable = as_hf(config, sources, a, here / "sources")
    weights = [source.weight / sum(source.weight for source in sources) for source in sources]
    angles: dict[str, float] = {}
    if distributed.rank() == 0:
        directories = [source.path for source in readable]
        angles = merging.merge(directories, weights, config.merge.method, here / "hf", a, tokenizer, config.model.dtype)
        record(config, here, sources, weights, angles)
        a.to_json(here / "architecture.json")
    ui.say(f"  {len(sources)} models merged ({config.merge.method})")
    return {"models": len(sources)} | ({"widest_angle": max(angles.values())} if angles else {})


def own(config: Config, origin: Path) -> list[Source]:
    """The pipeline's model, or the newest snapshots of the stage that made it, which share its weight.

    Raises:
        ConfigError: there are fewer snapshots.
    """
    wanted, weight = config.merge.snapshots, config.merge.weight
    if not wanted:
        left = "hf" if (origin / "hf").is_dir() else "megatron"
        return [Source(f"{origin.name}/{left}", origin / left, weight)]
    found = snapshots.find(origin / snapshots.DIRECTORY)
    if len(found) < wanted:
        raise ConfigError(f"merge.snapshots: found {wanted}, allowed: 0 to {len(found)}, which {origin.name} has left")
    return [Source(path.relative_to(origin.parent).as_posix(), path, weight / wanted) for path in found[-wanted:]]


def check(source: Source, key: str, a: Architecture, tokenizer: Path) -> None:
    """Refuse a model of another shape or with other words.

    A Megatron checkpoint says neither itself; one in a run's directory has both near it.

    Raises:
        ConfigError: its shape differs.
        CheckpointError: it cannot be read.
        DataError: its tokenizer differs.
    """
    if source.is_hf:
        found, words = Architecture.from_hf(source.path), source.path
    else:
        checkpoint.check(source.path)
        stage = next(
            (path for path in source.path.absolute().parents[:2] if (path / "architecture.json").exists()), None
        )
        if stage is None:
            return
        found = Architecture.from_json(stage / "architecture.json")
        words = tokenizer_beside(stage)
    if differing := other_shape(found, a):
        raise ConfigError(f"{key}: found {source.name!r} of another shape than the pipeline's model: {differing}")
    if words.is_dir():
        check_same_words(words, tokenizer, a.vocab_size, than="the pipeline's model")


def as_hf(config: Config, sources: list[Source], a: Architecture, scratch: Path) -> list[Source]:
    """The same models, all as Hugging Face directories; Megatron checkpoints are written there in float32."""
    if all(source.is_hf for source in sources):
        return sources
    found = []
    with distributed.model_parallel(config.parallel.tp, config.parallel.pp, config.run.seed):
        built = model.build(model.gpt_config(a, tp=config.parallel.tp, pp=config.parallel.pp), a)
        for index, source in enumerate(sources):
            if not source.is_hf:
                checkpoint.load(built, source.path)
                convert.save_hf(built, scratch / str(index), a)
                source = replace(source, path=scratch / str(index))
            found.append(source)
    return found


def record(config: Config, here: Path, sources: list[Source], weights: list[float], angles: dict[str, float]) -> None:
    """Write what was merged."""
    models = [
        {"model": source.name, "weight": weight, "digest": digest(source)}
        for source, weight in zip(sources, weights, strict=True)
    ]
    found = {"method": config.merge.method, "dtype": config.model.dtype, "models": models}
    artifacts.write_json(here / "merge.json", found | ({"angles": angles} if angles else {}))


def digest(source: Source) -> str:
    """Digest of a model's weights."""
    files = source.path.glob("*.safetensors" if source.is_hf else "weights/*")
    return artifacts.content_digest(artifacts.digest_files(source.path, files))
