"""Cut the source model to the target by its scores (Model Optimizer).

Leaves `megatron/`, `architecture.json` and `pruned.json`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.engine import checkpoint, distributed, minitron, model


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Prune in place and save.

    Raises:
        ConfigError: the target is larger than the source or impossible.
        GateError: the result does not have the target's number of parameters.
    """
    here, origin = run_dir / "prune", run_dir / "import_hf"
    source = Architecture.from_json(origin / "architecture.json")
    target = source.pruned_to(**asdict(config.prune.target))
    scores = minitron.Scores.load(run_dir / "score" / "scores.safetensors")
    with distributed.model_parallel(1, config.parallel.pp, config.run.seed):
        megatron = model.build(model.gpt_config(source, pp=config.parallel.pp, dtype=config.model.dtype), source)
        checkpoint.load(megatron, origin / "megatron")
        megatron = minitron.prune(megatron, source, target, scores)
        checkpoint.save(megatron, here / "megatron")
        if distributed.rank() == 0:
            kept = scores.kept_layers(target.num_layers)
            artifacts.write_json(
                here / "pruned.json",
                {
                    "kept_layers": kept,
                    "dropped_layers": [i for i in range(source.num_layers) if i not in kept],
                    "target": asdict(config.prune.target),
                },
            )
            target.to_json(here / "architecture.json")
    ui.say(f"  {source.num_parameters():,} -> {target.num_parameters():,} parameters")
    return {"source_parameters": source.num_parameters(), "target_parameters": target.num_parameters()}
