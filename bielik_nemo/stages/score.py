"""Importance of every layer, channel and head of the source model (Minitron, Model Optimizer).

The source's own held-out loss is measured first: a model that predicts nothing is not worth scoring, and what the
teacher must show at step 0 of distillation is this number. Leaves `scores.safetensors`, the calibration set and
`importance.json`. Scores that another run measured on the same model, calibration set and definitions are taken over
where `prune.importance.scores` names them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.artifacts import Manifest
from bielik_nemo.config import Config
from bielik_nemo.engine import calibration, checkpoint, distributed, finite, importance, model, scores
from bielik_nemo.engine.datasets import HeldOut
from bielik_nemo.errors import CheckpointError, GateError
from bielik_nemo.stages import source_stage


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Measure loss and scores.

    Raises:
        CheckpointError: `prune.importance.scores` are of another model, calibration set or definition.
        GateError: the source model's held-out loss is above `distill.gate_max_loss`, or an activation is not finite.
    """
    here, source = run_dir / "score", run_dir / source_stage(config)
    architecture = Architecture.from_json(source / "architecture.json")
    settings = config.prune.importance
    with distributed.model_parallel(1, config.parallel.pp, config.run.seed):
        tokens, blend = calibration.prepare(config, run_dir)
        key = scores.key(Manifest.read(source).fingerprint, tokens, settings)
        found = _given(settings.scores, key) if settings.scores else None
        gpt = model.gpt_config(architecture, pp=config.parallel.pp, dtype=config.model.dtype, fused=False)
        megatron = model.build(gpt, architecture)
        checkpoint.load(megatron, source / "megatron")
        with finite.activations(megatron):
            loss = _source_loss(config, megatron, run_dir / "data" / "held_out")
            if found is None:
                batch_size = config.prune.calibration.batch_size
                found = importance.measure(megatron, architecture, tokens, settings, batch_size, key)
        if distributed.rank() == 0:
            found.save(here / "scores.safetensors")
            calibration.save(tokens, here)
            layers = [round(score, 6) for score in found.layers.tolist()]
            artifacts.write_json(here / "importance.json", {"layers": layers, "method": settings.layers, **blend})
    return {"source_loss": loss, "calibration_tokens": tokens.numel(), "calibration": blend}


def _given(path: str, key: dict[str, str]) -> scores.Scores:
    """Scores of another run, if they are what this one would measure."""
    found = scores.Scores.load(Path(path))
    try:
        found.check(key)
    except CheckpointError as error:
        raise CheckpointError(f"prune.importance.scores: {path}: {error}") from None
    ui.say(f"  scores of {path}")
    return found


def _source_loss(config: Config, megatron: Any, directory: Path) -> float:
    """Held-out loss of the source, which must be a model's."""
    held_out = HeldOut(str(directory), config.data.seq_length, config.data.held_out_tokens, config.evaluate.batch_size)
    with ui.progress("held-out loss of the source", held_out.batches()) as advance:
        loss = held_out.loss(megatron, advance)
    if not loss <= config.distill.gate_max_loss:
        raise GateError(
            f"model.source: held-out loss {loss:.3f} nats per token, allowed are at most "
            f"distill.gate_max_loss={config.distill.gate_max_loss}; wrong tokenizer, text or checkpoint?"
        )
    return loss
