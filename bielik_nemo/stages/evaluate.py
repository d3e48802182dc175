"""Held-out loss and sample continuations of the source, the pruned and the distilled model, side by side.

Leaves `metrics.json`. All three run as Megatron models on the same tokens.
"""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import Any

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.data.tokenizer import load_tokenizer
from bielik_nemo.engine import convert, datasets, distributed, generate, model
from bielik_nemo.stages import distilled_stage, source_stage


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Measure all three models."""
    settings = config.evaluate
    models = {"source": source_stage(config), "pruned": "prune", "distilled": distilled_stage(config)}
    held_out = datasets.HeldOut(
        str(run_dir / "data" / "held_out"), config.data.seq_length, config.data.held_out_tokens, settings.batch_size
    )
    losses: dict[str, float] = {}
    by_language: dict[str, dict[str, float]] = {}
    samples: list[dict[str, str]] = [{"prompt": prompt} for prompt in settings.prompts]
    with distributed.model_parallel(config.parallel.tp, 1, config.run.seed):
        for name, stage in models.items():
            architecture = Architecture.from_json(run_dir / stage / "architecture.json")
            tokenizer = load_tokenizer(run_dir / "import_hf" / "tokenizer", architecture.vocab_size)
            gpt = model.gpt_config(architecture, tp=config.parallel.tp, dtype=config.model.dtype)
            megatron = model.build(gpt, architecture)
            convert.load_stage(megatron, run_dir / stage, architecture)
            with ui.progress(f"held-out loss, {name}", held_out.batches()) as advance:
                losses[name], by_language[name] = held_out.measure(megatron, advance)
            for sample in samples:
                prompt = tokenizer(sample["prompt"], add_special_tokens=False)["input_ids"]
                ids = generate.greedy(
                    megatron, prompt, settings.sample_tokens, architecture.vocab_size, tokenizer.eos_token_id
                )
                sample[name] = tokenizer.decode(ids)
            del megatron
            gc.collect()
    metrics = {
        "held_out_loss": losses,
        "perplexity": {name: math.exp(loss) for name, loss in losses.items()},
        "tokens": sum(blocks[:, 1:].numel() for blocks in held_out.blocks().values()),
        "samples": samples,
    }
    if len(by_language["source"]) > 1:
        metrics["held_out_loss_by_language"] = by_language
    if distributed.rank() == 0:
        artifacts.write_json(run_dir / "evaluate" / "metrics.json", metrics)
    return {"held_out_loss": losses}
