"""Importance of every layer, channel and head of the source model (Minitron, Model Optimizer).

The source's own held-out loss is measured first: a model that predicts nothing is not worth scoring, and what the
teacher must show at step 0 of distillation is this number. Leaves `scores.safetensors` and `importance.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.engine import calibration, checkpoint, datasets, distributed, forward, minitron, model
from bielik_nemo.errors import GateError


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Measure loss and scores.

    Raises:
        GateError: the source model's held-out loss is above `distill.gate_max_loss`.
    """
    here, data, source = run_dir / "score", run_dir / "data", run_dir / "import_hf"
    architecture = Architecture.from_json(source / "architecture.json")
    settings = config.prune.calibration
    with distributed.model_parallel(1, config.parallel.pp, config.run.seed):
        gpt = model.gpt_config(architecture, pp=config.parallel.pp, dtype=config.model.dtype)
        megatron = model.build(gpt, architecture)
        checkpoint.load(megatron, source / "megatron")
        held_out = datasets.blocks(data / "held_out", config.data.seq_length, config.data.held_out_tokens)
        batch = config.evaluate.batch_size
        with ui.progress("held-out loss of the source", -(-len(held_out) // batch)) as advance:
            loss = forward.held_out_loss(megatron, held_out, batch, advance)
        if not loss <= config.distill.gate_max_loss:
            raise GateError(
                f"model.source: held-out loss {loss:.3f} nats per token, allowed are at most "
                f"distill.gate_max_loss={config.distill.gate_max_loss}; wrong tokenizer, text or checkpoint?"
            )
        blocks, blend = calibration.prepare(config, run_dir)
        batches = list(blocks.split(settings.batch_size))
        with ui.progress("scoring", len(batches)) as advance:
            scores = minitron.score(
                megatron, architecture, lambda m: forward.run(m, batches, lambda _: None, on_batch=advance)
            )
        if distributed.rank() == 0:
            scores.save(here / "scores.safetensors")
            calibration.save(blocks, here)
            artifacts.write_json(
                here / "importance.json",
                {
                    "layers": [round(s, 6) for s in (scores.layers / len(batches)).tolist()],
                    **blend,
                },
            )
    return {"source_loss": loss, "calibration_tokens": blocks.numel()}
