"""The shapes that the budgets allow, best first, and the one to cut to: the first, until ranking.py knows better.

Leaves `candidates.json` and `target.json`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from bielik_nemo import artifacts, report, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.engine.scores import Scores
from bielik_nemo.errors import ConfigError
from bielik_nemo.prune import latency, search

LISTED = 100
"""Candidates that the file lists, at least; a space may have thousands."""


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Enumerate, list, choose the first.

    Raises:
        ConfigError: no shape fits the budgets, or one of the best cannot be pruned or split as the configuration says.
        CheckpointError: the scores are missing or damaged.
    """
    here, settings = run_dir / "search", config.prune.search
    source = Architecture.from_json(run_dir / config.tokenizer_stage / "architecture.json")
    scores = Scores.load(run_dir / "score" / "scores.safetensors")
    found = search.find(
        source,
        search.fixed(config, source),
        settings,
        latency.load(settings),
        shares(scores, source),
        config.prune.compensation.rotation,
    )
    best = found.candidates[: settings.top_k if settings.distill_steps else 1]
    if problems := search.unusable(config, source, best):
        raise ConfigError("\n".join(problems))
    record = search.record(found, settings, max(LISTED, settings.top_k))
    artifacts.write_json(here / "candidates.json", record)
    artifacts.write_json(here / "target.json", asdict(best[0].target()))
    ui.show(report.candidates(record))
    return {"space": found.space, "feasible": len(found.candidates), "target": best[0].name}


def shares(scores: Scores, source: Architecture) -> search.Shares:
    """Kept share of importance by axis and number of units, from the roots of the squared scores."""
    layers = range(source.num_layers)
    heads = (source.num_attention_heads, source.head_dim)
    units = scores.units
    return search.shares(
        scores.layers.tolist(),
        sum(units[f"norms.{i}"].double().sqrt() for i in range(2 * source.num_layers)).tolist(),
        [units[f"decoder.layers.{i}.mlp"].double().sqrt().tolist() for i in layers],
        [units[f"decoder.layers.{i}.self_attention"].double().view(heads).sum(1).sqrt().tolist() for i in layers],
        source.num_query_groups,
    )
