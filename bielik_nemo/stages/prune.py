"""Cut the source model to the target by its scores (Model Optimizer), or take a student that was cut elsewhere.

Leaves `megatron/` (with `prune.streaming`: `hf/`), `architecture.json`, and of a cut `pruned.json` and `kept.json`,
which says what stayed so that another tool can repeat the cut (see prune/kept.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.config_prune import Target
from bielik_nemo.data.builtin import resolve_model_source
from bielik_nemo.data.tokenizer import check_same_words
from bielik_nemo.engine import calibration, checkpoint, compensation, distributed, minitron, model, streaming
from bielik_nemo.engine.scores import Scores
from bielik_nemo.errors import ConfigError
from bielik_nemo.prune.kept import Kept, choose, kept_layers
from bielik_nemo.stages import source_stage
from bielik_nemo.stages.import_hf import converted
from bielik_nemo.validation.shapes import target_architecture


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Choose what stays, cut, and record it.

    Raises:
        ConfigError: the target is larger than the source or impossible.
        CheckpointError: the source, the scores or the given student are damaged.
        DataError: the given student has another tokenizer.
        GateError: the result does not have the target's number of parameters, or the given student other logits.
    """
    source = Architecture.from_json(run_dir / source_stage(config) / "architecture.json")
    target = target_of(config, run_dir, source)
    if config.prune.student:
        take(config, run_dir, target)
    else:
        _cut_and_record(config, run_dir, source, target)
    ui.say(f"  {source.num_parameters():,} -> {target.num_parameters():,} parameters")
    return {"source_parameters": source.num_parameters(), "target_parameters": target.num_parameters()}


def take(config: Config, run_dir: Path, student: Architecture) -> None:
    """Convert the given student as `import_hf` does its source; its words must be the source's, id by id."""
    here, directory = run_dir / "prune", Path(config.prune.student)
    check_same_words(directory, run_dir / config.tokenizer_stage / "tokenizer", student.vocab_size)
    with distributed.model_parallel(1, config.parallel.pp, config.run.seed):
        megatron, _ = converted(config, directory, student, 1, config.parallel.pp)
        checkpoint.save(megatron, here / "megatron")
    if distributed.rank() == 0:
        student.to_json(here / "architecture.json")


def _cut_and_record(config: Config, run_dir: Path, source: Architecture, target: Architecture) -> None:
    here = run_dir / "prune"
    kept = what_stays(config, source, target, run_dir / "score" / "scores.safetensors")
    errors: dict[str, dict[str, float]] = {}
    if config.prune.streaming:
        checkpoint_hf = resolve_model_source(config.model.source, here / "source")
        streaming.cut(checkpoint_hf, here / "hf", source, target, kept, config.model.dtype)
    else:
        errors = cut(config, run_dir, source, target, kept)
    if config.prune.compensation.rotation and target.hidden_size < source.hidden_size:
        kept = replace(kept, hidden=[])  # principal axes stayed, whatever the scores of the channels
    if distributed.rank() == 0:
        record(here, source, target, kept, errors)


def target_of(config: Config, run_dir: Path, source: Architecture) -> Architecture:
    """The shape to cut to: the search's choice where the pipeline has a search, else `prune.target`."""
    chosen = None
    if "search" in config.pipeline.stages:
        chosen = Target(**artifacts.read_json(run_dir / "search" / "target.json"))
    return target_architecture(config, source, chosen)


def cut(
    config: Config, run_dir: Path, source: Architecture, target: Architecture, kept: Kept
) -> dict[str, dict[str, float]]:
    """Cut the Megatron checkpoint, spread over the pipeline stages, with Model Optimizer and what is to make up for it.

    Returns:
        Squared errors before and after each refit, see engine/refit.py.
    """
    settings, calibrated = config.prune.compensation, config.prune.calibration
    with distributed.model_parallel(1, config.parallel.pp, config.run.seed):

        def load() -> Any:
            built = model.build(
                model.gpt_config(source, pp=config.parallel.pp, dtype=config.model.dtype, fused=False), source
            )
            checkpoint.load(built, run_dir / source_stage(config) / "megatron")
            return built

        if compensation.wanted(settings):
            tokens = calibration.load(run_dir)[: settings.samples]
            pruned, errors = compensation.cut(
                load, source, target, kept, list(tokens.split(calibrated.batch_size)), settings
            )
        else:
            pruned, errors = minitron.prune(load(), source, target, kept), {}
        checkpoint.save(pruned, run_dir / "prune" / "megatron")
        return distributed.merged(errors)


def what_stays(config: Config, source: Architecture, target: Architecture, scores: Path) -> Kept:
    """Layers and units that stay, by the scores and by hand."""
    prune, found = config.prune, Scores.load(scores)
    layers = kept_layers(
        found,
        target.num_layers,
        prune.importance.layers,
        prune.keep_first_layers,
        prune.keep_last_layers,
        prune.drop_layers,
    )
    if not prune.streaming:
        _check_stages(config, source.num_layers, layers)
    return choose(found, source, target, layers)


def _check_stages(config: Config, num_layers: int, kept: Sequence[int]) -> None:
    """Refuse what the pipeline stages, each with its share of the source's layers, cannot do.

    Raises:
        ConfigError: a stage would have no layer left, or begins in a gap that a layer of the stage before is to fill.
    """
    size = num_layers // config.parallel.pp
    for first in range(0, num_layers, size):
        if not set(kept) & set(range(first, first + size)):
            raise ConfigError(
                f"parallel.pp: found {config.parallel.pp}, allowed: a size whose stages all keep layers; "
                f"layers {first} to {first + size - 1} are all dropped (prune.drop_layers, or by importance)"
            )
        if config.prune.compensation.blocks and first > 0 and first not in kept:
            raise ConfigError(
                f"prune.compensation.blocks: found True with parallel.pp={config.parallel.pp}, allowed: where no "
                f"dropped layer begins a pipeline stage, as layer {first} does; try another parallel.pp"
            )


def record(
    here: Path, source: Architecture, target: Architecture, kept: Kept, errors: dict[str, dict[str, float]]
) -> None:
    """Write what the cut model is, what it was cut from, and the errors that compensation found and left."""
    axes = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups")
    artifacts.write_json(
        here / "pruned.json",
        {
            "kept_layers": kept.layers,
            "dropped_layers": [i for i in range(source.num_layers) if i not in kept.layers],
            "target": {axis: getattr(target, axis) for axis in axes},
            "squared_errors": errors,
        },
    )
    kept.to_json(here / "kept.json")
    target.to_json(here / "architecture.json")
