"""The numbers of a run, gathered from the files that its stages left in the run directory.

Every file is optional, because a pipeline may be a part of the graph: what is missing is left out, never
guessed. What is there must be right: the first file that is no JSON or says something impossible is one
DataError with its name and line (files.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bielik_nemo.errors import DataError
from bielik_nemo.report import (
    alignment,
    benchmarks,
    cost,
    formats,
    quality,
    rewards,
    shape,
    speed,
    tokenizers,
    training,
    words,
)
from bielik_nemo.report.files import needed, numbers_of, read, rows_of


def collect(run_dir: str | Path) -> dict[str, Any]:
    """All that report.json says. Keys whose stage has not run are absent.

    run                 name of the run directory
    parameters          {source, target: all; source_once, target_once: one of two embedding matrices}
    architecture        {source, target: fields of Architecture}
    search              candidates, how distillation ranked them, and what fell out: search/candidates.json
    layers              {importance: [one per layer], method: how it was measured, dropped: [0-based]}
    compensation        {attention, ffn: [{layer: 0-based, before, after}]}: relative squared errors of the refits
    held_out_loss ...   what quality.py lists
    benchmarks          what benchmarks.py says
    blend               {stage: [{name, language, share, samples, tokens, epochs} of each source]} that trains
    adaptation          {training: [rows], validation: [rows]} of the adaptation to another tokenizer
    pretraining         the same of the source's continued pre-training
    curve, curve_long   the same of distillation, one row per logged step, and of its second phase
    teacher_cache       {tokens, bytes_per_token} of what the stage `teacher` kept
    distilled_step      the step whose weights are the result
    conversations ...   what alignment.py lists
    tasks ...           what rewards.py lists
    samples             [{prompt, and its continuation by model}]
    parity              {max_abs_logit_diff, tolerance, tokens} of the exported checkpoint
    speed               what speed.py says
    formats             what formats.py says
    tokenizers          what tokenizers.py says
    seconds, cost ...   what cost.py lists

    Raises DataError naming the file, and the line or key, of the first fault.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise DataError(f"{run_dir}: is not a run directory")
    evaluation, parity = run_dir / "evaluate" / "metrics.json", run_dir / "export" / "parity.json"
    content = read(evaluation)
    numbers = {
        "run": run_dir.resolve().name,
        **shape.collect(run_dir),
        "search": _search(run_dir / "search" / "candidates.json"),
        **quality.collect(evaluation, content),
        **benchmarks.collect(evaluation, content),
        **training.collect(run_dir),
        **alignment.collect(run_dir, evaluation, content),
        **rewards.collect(run_dir, evaluation, content),
        "samples": _samples(evaluation, content),
        "parity": numbers_of(parity, read(parity), ("max_abs_logit_diff", "tolerance", "tokens")),
        **speed.collect(run_dir),
        **formats.collect(run_dir),
        **tokenizers.collect(run_dir),
        **cost.collect(run_dir),
    }
    return {key: value for key, value in numbers.items() if value not in (None, {}, [])}


def _search(path: Path) -> dict[str, Any]:
    """The file's content, whose numbers are numbers and whose lists are lists."""
    found = read(path)
    if not found:
        return {}
    needed(path, found, ("space", "feasible"))
    needed(path, found, ("source_loss",) if "source_loss" in found else ())
    budgets, rejected = found.get("budgets"), found.get("rejected")
    numbers_of(path, budgets, budgets if isinstance(budgets, dict) else (), "budgets.")
    groups = {"candidates": found.get("candidates")}
    if not isinstance(rejected, dict) or not all(isinstance(each, dict) for each in rejected.values()):
        raise DataError(f"{path}: rejected: found {rejected!r:.80}, allowed: an object of objects")
    for reason, each in rejected.items():
        needed(path, each, ("count",), f"rejected.{reason}.")
        groups[f"rejected.{reason}.nearest"] = each.get("nearest")
    for name, rows in groups.items():
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: {name}: found {rows!r:.80}, allowed: a list of candidates")
        for row in rows:
            where = f"{name}.{row.get('name')}."
            needed(path, row, ("parameters", "parameters_once", "memory_gib"), where)
            ranked = ("zero_shot_loss", "distilled_loss", "zero_shot_rank", "distilled_rank")
            needed(path, row, ranked if "distilled_rank" in row else (), where)
            for key in ("zero_shot_loss_by_language", "distilled_loss_by_language"):
                numbers_of(path, row.get(key), row.get(key) or (), f"{where}{key}.")
    return found


def _samples(path: Path, content: dict[str, Any]) -> list[dict[str, str]]:
    rows = rows_of(path, content, "samples")
    if not all(isinstance(text, str) for row in rows for text in row.values()):
        raise DataError(f"{path}: samples: found {rows!r:.80}, allowed: texts, prompt and of each model")
    return [{key: row[key] for key in ("prompt", *words.ordered(row)) if key in row} for row in rows]
