"""The numbers of a run, gathered from the files that its stages left in the run directory.

Every file is optional, because a pipeline may be a part of the graph: what is missing is left out, never
guessed. What is there must be right: the first file that is no JSON or says something impossible is one
DataError with its name and line (files.py).
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bielik_nemo.architecture import Architecture
from bielik_nemo.errors import ConfigError, DataError
from bielik_nemo.report import alignment, rewards
from bielik_nemo.report.curves import curve
from bielik_nemo.report.files import by_model, is_number, needed, numbers_of, read
from bielik_nemo.report.words import COMPRESSED, ROLES

# The order in which stages are told; any other follows by name.
_STAGES = ("import_hf", "tokenizers", "data", "pretrain")
_STAGES += ("score", "search", "prune", "teacher", "distill", "distill_long")
_STAGES += ("chat", "sft", "preferences", "reference", "dpo", "tasks", "grpo", "merge", "export", "evaluate")
# The stages that draw samples from the training text.
TRAINED = ("pretrain", "distill", "distill_long")


def collect(run_dir: str | Path) -> dict[str, Any]:
    """All that report.json says. Keys whose stage has not run are absent.

    run                 name of the run directory
    parameters          {source, target: all; source_once, target_once: one of two embedding matrices}
    architecture        {source, target: fields of Architecture}
    search              candidates, how distillation ranked them, and what fell out: search/candidates.json
    layers              {importance: [one per layer], method: how it was measured, dropped: [0-based]}
    compensation        {attention, ffn: [{layer: 0-based, before, after}]}: relative squared errors of the refits
    held_out_loss       {model (one of ROLES): nats per token}, over held_out_tokens tokens
    held_out_loss_by_language  {model: {language: nats per token}}, where there are several
    perplexity          {model: perplexity}
    gap_closed          see `gap_closed`
    blend               {stage: [{name, language, share, samples, tokens, epochs} of each source]} that trains
    pretraining         {training: [rows], validation: [rows]} of the source's continued pre-training
    curve_long          the same of the second phase of distillation
    curve               {training: [rows], validation: [rows]} of distillation, one row per logged step
    teacher_cache       {tokens, bytes_per_token} of what the stage `teacher` kept
    distilled_step      the step whose weights are the result
    conversations ...   what alignment.py lists
    tasks ...           what rewards.py lists
    samples             [{prompt, and its continuation by model}]
    parity              {max_abs_logit_diff, tolerance, tokens} of the exported checkpoint
    seconds             {stage: wall time}
    packages            {name: version; several, comma-separated, when the stages saw different ones}

    Raises DataError naming the file, and the line or key, of the first fault.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise DataError(f"{run_dir}: is not a run directory")
    evaluation = run_dir / "evaluate" / "metrics.json"
    content = read(evaluation)
    held_out_loss = numbers_of(evaluation, content.get("held_out_loss"), ROLES, "held_out_loss.")
    parity, taught = run_dir / "export" / "parity.json", run_dir / "teacher" / "manifest.json"
    distilled = run_dir / "distill" / "manifest.json"
    numbers = {
        "run": run_dir.resolve().name,
        **_architectures(run_dir),
        "search": _search(run_dir / "search" / "candidates.json"),
        "layers": _layers(run_dir / "score" / "importance.json", run_dir / "prune" / "pruned.json"),
        "compensation": _compensation(run_dir / "prune" / "pruned.json"),
        "held_out_loss": held_out_loss,
        "held_out_loss_by_language": by_model(evaluation, content, "held_out_loss_by_language", ROLES),
        "perplexity": numbers_of(evaluation, content.get("perplexity"), ROLES, "perplexity."),
        "held_out_tokens": numbers_of(evaluation, content, ["tokens"]).get("tokens"),
        "gap_closed": gap_closed(held_out_loss),
        "blend": _blends(run_dir),
        "pretraining": curve(run_dir / "pretrain" / "metrics.jsonl"),
        "curve_long": curve(run_dir / "distill_long" / "metrics.jsonl"),
        "curve": curve(run_dir / "distill" / "metrics.jsonl"),
        "teacher_cache": numbers_of(taught, read(taught).get("metrics"), ("tokens", "bytes_per_token"), "metrics."),
        "distilled_step": numbers_of(distilled, read(distilled).get("metrics"), ["step"]).get("step"),
        **alignment.collect(run_dir, evaluation, content),
        **rewards.collect(run_dir, evaluation, content),
        "samples": _samples(evaluation, content.get("samples")),
        "parity": numbers_of(parity, read(parity), ("max_abs_logit_diff", "tolerance", "tokens")),
        **_manifests(run_dir),
    }
    return {key: value for key, value in numbers.items() if value not in (None, {}, [])}


def gap_closed(loss: dict[str, float]) -> float | None:
    """(pruned - distilled) / (pruned - source): 0 is no better than pruned, 1 as good as the source.

    Not clipped: negative says that distillation did harm, more than 1 that the student beats its teacher.
    None when a value is missing, or when pruning cost nothing and there is no gap.
    """
    if not loss.keys() >= set(COMPRESSED) or loss["pruned"] <= loss["source"]:
        return None
    return (loss["pruned"] - loss["distilled"]) / (loss["pruned"] - loss["source"])


def _architectures(run_dir: Path) -> dict[str, Any]:
    paths = {"source": run_dir / "import_hf", "target": run_dir / "prune"}
    files = {role: path / "architecture.json" for role, path in paths.items()}
    shapes = {role: _shape(path) for role, path in files.items() if path.is_file()}
    every = {role: shape.num_parameters() for role, shape in shapes.items()}
    once = {f"{role}_once": shape.num_parameters(embeddings="once") for role, shape in shapes.items()}
    return {
        "parameters": every | once,
        "architecture": {role: asdict(shape) for role, shape in shapes.items()},
    }


def _shape(path: Path) -> Architecture:
    try:
        return Architecture(**read(path))
    except (TypeError, ConfigError) as error:  # TypeError: a field is missing, or is none of ours
        raise DataError(f"{path}: {error}") from None


def _layers(scores: Path, pruned: Path) -> dict[str, Any]:
    measured = read(scores)
    importance = measured.get("layers", [])
    if not isinstance(importance, list) or not all(is_number(score) for score in importance):
        raise DataError(f"{scores}: layers: found {importance!r:.80}, allowed: a list of numbers")
    dropped = read(pruned).get("dropped_layers", [])
    if not isinstance(dropped, list) or not all(type(layer) is int for layer in dropped):
        raise DataError(f"{pruned}: dropped_layers: found {dropped!r:.80}, allowed: a list of layer numbers")
    found = {"importance": importance, "method": measured.get("method"), "dropped": dropped}
    return {key: value for key, value in found.items() if value}


def _compensation(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Errors before and after each refit, by rising layer (see engine/refit.py); null: not a finite number."""
    errors = read(path).get("squared_errors") or {}
    if not isinstance(errors, dict):
        raise DataError(f"{path}: squared_errors: found {errors!r:.80}, allowed: an object of objects")
    found: dict[str, list[dict[str, Any]]] = {"attention": [], "ffn": []}
    for name, pair in errors.items():
        key = re.fullmatch(r"(\d+)\.(attention|ffn)", name)
        if not key:
            raise DataError(f"{path}: squared_errors: found {name!r:.80}, allowed: <layer>.attention, <layer>.ffn")
        where = f"squared_errors.{name}."
        row = numbers_of(path, pair, ("before", "after"), where, keep_null=True)
        absent = [when for when in ("before", "after") if when not in row]
        if absent:
            raise DataError(f"{path}: {where}{absent[0]}: found nothing, allowed: a number")
        found[key[2]].append({"layer": int(key[1]), **row})
    return {part: sorted(rows, key=lambda row: row["layer"]) for part, rows in found.items() if rows}


def _blends(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """What each stage that trains drew of each source."""
    found = {}
    for path in (run_dir / stage / "blend.json" for stage in TRAINED if (run_dir / stage / "blend.json").is_file()):
        rows = read(path).get("sources")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: sources: found {rows!r:.80}, allowed: a list of sources")
        for index, row in enumerate(rows):
            needed(path, row, ("share", "samples", "tokens", "epochs"), f"sources[{index}].")
            if not all(isinstance(row.get(key), str) for key in ("name", "language")):
                raise DataError(f"{path}: sources[{index}]: found {row!r:.80}, allowed: name and language as text")
        found[path.parent.name] = rows
    return found


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


def _samples(path: Path, samples: Any) -> list[dict[str, str]]:
    texts = ("prompt", *ROLES)
    rows = samples or []
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and all(isinstance(row.get(key, ""), str) for key in texts) for row in rows
    ):
        raise DataError(f"{path}: samples: found {rows!r:.80}, allowed: objects of {', '.join(texts)}")
    return [{key: row[key] for key in texts if key in row} for row in rows]


def _manifests(run_dir: Path) -> dict[str, dict]:
    def order(path: Path) -> tuple[int, str]:
        stage = path.parent.name
        return (_STAGES.index(stage) if stage in _STAGES else len(_STAGES), stage)

    seconds: dict[str, float] = {}
    versions: dict[str, dict[str, None]] = {}
    for path in sorted(run_dir.glob("*/manifest.json"), key=order):
        manifest = read(path)
        for value in numbers_of(path, manifest, ["seconds"]).values():
            seconds[path.parent.name] = value
        packages = manifest.get("packages", {})
        if not isinstance(packages, dict):
            raise DataError(f"{path}: packages: found {packages!r:.80}, allowed: an object")
        for name, version in packages.items():
            versions.setdefault(name, {})[str(version)] = None
    return {"seconds": seconds, "packages": {name: ", ".join(versions[name]) for name in sorted(versions)}}
