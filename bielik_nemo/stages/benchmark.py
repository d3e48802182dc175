"""How fast the source and what was made of it answer, beside the least time that memory allows.

Leaves `metrics.json`. Measured are Hugging Face directories: `model.source`, the export where the pipeline has one, and
those among `evaluate.models`. A source that was trained further has the shape of `model.source`, and so its speed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bielik_nemo import artifacts, ui
from bielik_nemo.config import Config
from bielik_nemo.data.builtin import resolve_model_source
from bielik_nemo.engine import speed
from bielik_nemo.stages import model_stage
from bielik_nemo.stages.subject import made


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Measure all models in turns.

    Raises:
        CheckpointError: a model is missing or of another family.
        UserError: the process of a model has ended, as it does where memory is not enough.
    """
    here, settings = run_dir / "benchmark", config.benchmark
    measured = models(config, run_dir)
    turns = len(measured) * len(settings.points) * (settings.repeats + 1)
    with ui.progress("generation speed", turns) as advance:
        found = speed.compare(measured, settings, config.model.dtype, here / "log.txt", advance, config.run.seed)
    artifacts.write_json(here / "metrics.json", found)
    for row in found["points"]:
        ui.say(f"  {line(row)}")
    return {key: found[key] for key in ("device", "bandwidth_gb_s", "ratios")}


def models(config: Config, run_dir: Path) -> dict[str, Path]:
    """Hugging Face directories by name, the source first."""
    found = {"source": resolve_model_source(config.model.source, run_dir / "benchmark" / "source")}
    names = {stage: name for name, stage in made(config).items()}
    if "export" in config.pipeline.stages:  # which may be of the source itself
        found.setdefault(names.get(model_stage(config), "source"), run_dir / "export" / "hf")
    others = {each.name: Path(each.path) for each in config.evaluate.models}
    return found | {name: path for name, path in others.items() if (path / "config.json").is_file()}


def line(row: dict[str, Any]) -> str:
    """One row for a person."""
    load = f"{row['input_tokens']} + {row['output_tokens']} tokens, concurrency {row['concurrency']}"
    return (
        f"{row['model']}, {load}: first token {row['ttft_ms']:,.1f} ms, then {row['tpot_ms']:,.2f} ms each (limit "
        f"{row['limit_tpot_ms']:,.2f}), {row['tokens_per_second']:,.1f} tokens/s, {row['peak_memory_gib']:.2f} GiB"
    )
