"""Hugging Face checkpoint -> Megatron checkpoint, with the tokenizer's files beside it.

Leaves `megatron/`, `architecture.json`, `parity.json`, and `tokenizer/` (tokenizer files and the source's config.json).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.data.builtin import resolve_model_source
from bielik_nemo.engine import checkpoint, convert, distributed, finite, hf_reader, model, parity
from bielik_nemo.errors import ConfigError


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Convert, check against plain transformers, save.

    Raises:
        CheckpointError: the source is missing, damaged or not of this family.
        ConfigError: it is not of the configured `model.shape`.
        GateError: an activation is not finite, or the converted model gives other logits.
    """
    here = run_dir / "import_hf"
    with distributed.model_parallel(config.parallel.tp, config.parallel.pp, config.run.seed):
        if distributed.rank() == 0:
            resolve_model_source(config.model.source, here / "source")
        distributed.barrier()
        source = resolve_model_source(config.model.source, here / "source")
        architecture = Architecture.from_hf(source)
        check_shape(config, architecture)
        ui.say(f"  reading {architecture.num_parameters():,} parameters from {config.model.source}")
        megatron, found = converted(config, source, architecture, config.parallel.tp, config.parallel.pp)
        checkpoint.save(megatron, here / "megatron")
        if distributed.rank() == 0:
            _copy_tokenizer(source, here / "tokenizer")
            artifacts.write_json(here / "parity.json", found)
            architecture.to_json(here / "architecture.json")
    return {"parameters": architecture.num_parameters(), "parity": found["max_abs_logit_diff"]}


def converted(config: Config, directory: Path, a: Architecture, tp: int, pp: int) -> tuple[Any, dict[str, Any]]:
    """A Hugging Face checkpoint as a Megatron model in `model.dtype`, and what comparing their logits found.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or not of this shape.
        GateError: an activation is not finite, or the converted model gives other logits.
    """
    hf_reader.check_source(directory, a)
    # Built in float32 and rounded to the stored dtype, so that parity measures the conversion and not the rounding.
    megatron = model.build(model.gpt_config(a, tp=tp, pp=pp), a)
    convert.load_hf(megatron, directory, a)
    model.round_parameters(megatron, config.model.dtype)
    tokens = parity.probe_tokens(a.vocab_size, config.export.parity_tokens, config.run.seed)
    with finite.activations(megatron):
        found = parity.check(megatron, directory, a, tokens, config.model.dtype, config.export.parity_tolerance)
    return model.cast(megatron, config.model.dtype), found


def check_shape(config: Config, found: Architecture) -> None:
    """Compare a checkpoint's architecture with the configured shape, where one is configured.

    Raises:
        ConfigError: they differ; every difference is named.
    """
    if config.model.shape is None:
        return
    differences = [
        f"{name}: model.shape says {wanted}, the checkpoint {getattr(found, name)}"
        for name, wanted in vars(config.model.shape).items()
        if getattr(found, name) != wanted
    ]
    if differences:
        raise ConfigError(f"model.source={config.model.source}: " + "; ".join(differences))


def _copy_tokenizer(source: Path, target: Path) -> None:
    partial = target.with_name("tokenizer.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    convert.copy_tokenizer(source, partial)
    shutil.copyfile(source / "config.json", partial / "config.json")
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
