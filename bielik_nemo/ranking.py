"""Which candidate of a search is best after distillation: each is pruned and distilled for the same few steps.

Zero-shot loss misleads: candidates change places during the first few hundred steps, then settle (arXiv 2407.14679
section 4: 400 steps, 1.8 billion tokens). So the `top_k` first candidates are runs of their own in `search/runs/<name>`
through the same stages as any run, and what skips finished stages and resumes interrupted ones there does so here.
Import, text and scores are links to the whole run's. One pass of the teacher, in `search/runs/shared`, serves all (for
a loss that needs more than it leaves, see `Config.cacheable`, the teacher runs beside each candidate).
Each candidate has warm-up and cosine of its own, in proportion to those of the whole run.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bielik_nemo import artifacts, ui
from bielik_nemo.artifacts import Manifest
from bielik_nemo.config import STAGES, Config
from bielik_nemo.config_prune import Target
from bielik_nemo.errors import DataError, GateError
from bielik_nemo.prune.search import AXES
from bielik_nemo.stages import GRAPH, RANKED_BY, Stage, needed

RunStage = Callable[[Config, Stage, Path], None]
"""Runs one stage of a configuration in a run directory, unless it is done."""


def rank(config: Config, run_dir: Path, run_stage: RunStage) -> dict[str, Any]:
    """Distil the first candidates and write what they reached into `candidates.json`, the best into `target.json`.

    A candidate whose training diverges is last, with the reason; the others go on.

    Returns:
        Name and losses of the best.

    Raises:
        GateError: all candidates failed; the first one's reason.
    """
    here, settings = run_dir / "search", config.prune.search
    found = artifacts.read_json(here / "candidates.json")
    rows = found["candidates"][: settings.top_k]
    if "teacher" in stages(config):
        run_stage(_prepared(config, run_dir, "shared"), GRAPH["teacher"], here / "runs" / "shared")
    seconds: list[float] = []
    for number, row in enumerate(rows, 1):
        directory = here / "runs" / row["name"]
        done = Manifest.read(directory / "distill") is not None
        ui.say(f"candidate  {number}/{len(rows)} {row['name']}")
        start = time.monotonic()
        row |= _distilled(config, run_dir, row, run_stage)
        seconds += [] if done else [time.monotonic() - start]
        left = f"; {sum(seconds) / len(seconds) * (len(rows) - number):.0f} s left" if seconds else ""
        outcome = row.get("failed") or (
            f"held-out loss {row['zero_shot_loss']:.3f} pruned, {row['distilled_loss']:.3f} distilled"
        )
        ui.say(f"candidate  {number}/{len(rows)} {row['name']}: {outcome}{left}")
    reached = [row for row in rows if "failed" not in row]
    if not reached:
        raise GateError(f"prune.search: all {len(rows)} candidates failed, the first with: {rows[0]['failed']}")
    for kind in ("zero_shot", "distilled"):
        for place, row in enumerate(sorted(reached, key=lambda row: row[f"{kind}_loss"]), 1):
            row[f"{kind}_rank"] = place
    best = min(reached, key=lambda row: row["distilled_rank"])
    found |= source_losses(run_dir)
    artifacts.write_json(here / "candidates.json", found)
    artifacts.write_json(here / "target.json", {axis: best[axis] for axis in AXES})
    return {"target": best["name"]} | {key: best[key] for key in ("zero_shot_loss", "distilled_loss")}


def stages(config: Config) -> list[str]:
    """The stages of a candidate's run, in order."""
    return [name for name in (*shared(config), *RANKED_BY) if config.cacheable or name != "teacher"]


def shared(config: Config) -> list[str]:
    """The stages whose results a candidate's run takes from the whole one, in order."""
    return [name for name in STAGES if name in needed(GRAPH["search"], config)]


def candidate_config(config: Config, directory: Path, target: Target | None = None) -> Config:
    """The configuration of a short run: its length, and warm-up, decay and validation in proportion to it."""
    steps = config.prune.search.distill_steps
    share = steps / config.trainer.max_steps
    warmup = min(round(share * config.optim.warmup_steps), steps - 1)
    decay = min(math.ceil(share * config.optim.decay_steps), steps - warmup)
    validate_every = max(1, round(share * config.trainer.validate_every))
    return replace(
        config,
        run=replace(config.run, dir=str(directory)),
        prune=replace(config.prune, target=target or config.prune.target),
        optim=replace(config.optim, warmup_steps=warmup, decay_steps=decay),
        trainer=replace(config.trainer, max_steps=steps, validate_every=validate_every),
        pipeline=replace(config.pipeline, stages=stages(config)),
    )


def source_losses(run_dir: Path) -> dict[str, Any]:
    """The held-out loss of the model that is not pruned, as scoring measured it."""
    manifest = Manifest.read(run_dir / "score")
    return {key: value for key, value in (manifest.metrics if manifest else {}).items() if "source_loss" in key}


def losses(path: Path) -> dict[str, Any]:
    """Held-out loss before the first and after the last step of a `metrics.jsonl`, by language where it tells it.

    Raises:
        DataError: it was not measured twice.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    measured = [record for record in map(json.loads, lines) if "held_out_loss" in record]
    if len(measured) < 2 or measured[0]["step"] != 0:
        raise DataError(f"{path}: found {len(measured)} held-out losses, allowed: from step 0 to the last")
    return {
        key.replace("held_out", kind): value
        for kind, record in (("zero_shot", measured[0]), ("distilled", measured[-1]))
        for key, value in record.items()
        if key.startswith("held_out_loss")
    }


def _distilled(config: Config, run_dir: Path, row: dict[str, Any], run_stage: RunStage) -> dict[str, Any]:
    """Prune and distil one candidate; its losses, or why it failed."""
    directory = run_dir / "search" / "runs" / row["name"]
    target = Target(**{axis: row[axis] for axis in AXES})
    short = _prepared(config, run_dir, row["name"], target)
    if "teacher" in stages(config):
        _link(directory / "teacher", run_dir / "search" / "runs" / "shared" / "teacher")
    try:
        for name in ("prune", "distill"):
            run_stage(short, GRAPH[name], directory)
    except GateError as error:
        return {"failed": str(error)}
    found = losses(directory / "distill" / "metrics.jsonl")
    if not all(math.isfinite(found[key]) for key in ("zero_shot_loss", "distilled_loss")):
        # A last step that goes wrong shows here only, and numbers that are none have no order.
        reached = f"{found['zero_shot_loss']} pruned, {found['distilled_loss']} distilled"
        return {"failed": f"search: the held-out loss of {row['name']} is {reached}; lower optim.lr"}
    return found


def _prepared(config: Config, run_dir: Path, name: str, target: Target | None = None) -> Config:
    """The configuration of a run below this one, in whose directory stand links to what they share."""
    directory = run_dir / "search" / "runs" / name
    directory.mkdir(parents=True, exist_ok=True)
    for stage in shared(config):
        _link(directory / stage, run_dir / stage)
    return candidate_config(config, directory, target)


def _link(path: Path, target: Path) -> None:
    """A relative link, so that a run directory can be moved."""
    wanted = os.path.relpath(target, path.parent)
    if not (path.is_symlink() and os.readlink(path) == wanted):
        path.unlink(missing_ok=True)
        path.symlink_to(wanted)
