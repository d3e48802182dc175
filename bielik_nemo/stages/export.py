"""Megatron checkpoint -> Hugging Face directory, finished only when plain transformers gives the same logits.

Leaves `hf/` and `parity.json`. The directory appears under its final name only after the parity gate.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.engine import convert, datasets, distributed, model, parity
from bielik_nemo.stages import model_stage


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Export the newest model of the pipeline; see `write`."""
    return write(config, run_dir, run_dir / model_stage(config), run_dir / "export")


def write(config: Config, run_dir: Path, origin: Path, here: Path) -> dict[str, Any]:
    """Export the model that the stage in `origin` has left to `here`.

    Raises:
        CheckpointError: a tensor was not written, or transformers cannot load the result completely.
        GateError: the reloaded model gives other logits than the Megatron model.
    """
    architecture = Architecture.from_json(origin / "architecture.json")
    candidate = here / "hf.unchecked"
    with distributed.model_parallel(config.parallel.tp, config.parallel.pp, config.run.seed):
        gpt = model.gpt_config(architecture, tp=config.parallel.tp, pp=config.parallel.pp)
        megatron = model.build(gpt, architecture)
        convert.load_stage(megatron, origin, architecture)
        model.round_parameters(megatron, config.model.dtype)
        convert.save_hf(
            megatron,
            candidate,
            architecture,
            run_dir / config.tokenizer_stage / "tokenizer",
            config.export.max_shard_gib,
            config.model.dtype,
        )
        text = None
        if "data" in config.pipeline.stages:
            held_out = datasets.by_language(
                run_dir / "data" / "held_out", parity.SEQUENCE, config.export.parity_tokens // 2
            )
            text = torch.cat(list(held_out.values()))[:, :-1]
        tokens = parity.probe_tokens(architecture.vocab_size, config.export.parity_tokens, config.run.seed, text)
        found = parity.check(
            megatron, candidate, architecture, tokens, config.model.dtype, config.export.parity_tolerance
        )
        if distributed.rank() == 0:
            shutil.rmtree(here / "hf", ignore_errors=True)
            os.replace(candidate, here / "hf")
            artifacts.write_json(here / "parity.json", found)
    ui.say(f"  {here / 'hf'}: logits agree with the Megatron model's to {found['max_abs_logit_diff']:.1e}")
    return {"parity": found["max_abs_logit_diff"], "model": origin.name}
