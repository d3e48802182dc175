"""The numbers of a run, gathered from the files that its stages left in the run directory.

Every file is optional, because a pipeline may be a part of the graph: what is missing is left out, never
guessed. What is there must be right: the first file that is no JSON or says something impossible is one
DataError with its name and line. NaN and infinity, which Python writes but JSON lacks, count as null.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bielik_nemo.architecture import Architecture
from bielik_nemo.errors import ConfigError, DataError

# The three models that a run compares, in the order in which they came to be.
ROLES = ("source", "pruned", "distilled")
# The order in which stages are told; any other follows by name.
_STAGES = ("import_hf", "data", "score", "search", "prune", "pretrain", "teacher", "distill")
_STAGES += ("sft", "dpo", "grpo", "export", "evaluate")
_CURVE = ("step", "loss", "held_out_loss", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds")


def collect(run_dir: str | Path) -> dict[str, Any]:
    """All that report.json says. Keys whose stage has not run are absent.

    run                 name of the run directory
    parameters          {source, target: all; source_once, target_once: one of two embedding matrices}
    architecture        {source, target: fields of Architecture}
    search              candidates, how distillation ranked them, and what fell out: search/candidates.json
    layers              {importance: [one per layer], method: how it was measured, dropped: [0-based]}
    held_out_loss       {source, pruned, distilled}, nats per token, over held_out_tokens tokens
    held_out_loss_by_language  {source, pruned, distilled: {language: nats per token}}, where there are several
    perplexity          {source, pruned, distilled}
    gap_closed          see `gap_closed`
    curve               {training: [rows], validation: [rows]} of distillation, one row per logged step
    samples             [{prompt, source, pruned, distilled}]
    parity              {max_abs_logit_diff, tolerance, tokens} of the exported checkpoint
    seconds             {stage: wall time}
    packages            {name: version; several, comma-separated, when the stages saw different ones}

    Raises DataError naming the file, and the line or key, of the first fault.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise DataError(f"{run_dir}: is not a run directory")
    evaluation = run_dir / "evaluate" / "metrics.json"
    content = _read(evaluation)
    held_out_loss = _numbers_of(evaluation, content.get("held_out_loss"), ROLES, "held_out_loss.")
    parity = run_dir / "export" / "parity.json"
    numbers = {
        "run": run_dir.resolve().name,
        **_architectures(run_dir),
        "search": _search(run_dir / "search" / "candidates.json"),
        "layers": _layers(run_dir / "score" / "importance.json", run_dir / "prune" / "pruned.json"),
        "held_out_loss": held_out_loss,
        "held_out_loss_by_language": _by_language(evaluation, content),
        "perplexity": _numbers_of(evaluation, content.get("perplexity"), ROLES, "perplexity."),
        "held_out_tokens": _numbers_of(evaluation, content, ["tokens"]).get("tokens"),
        "gap_closed": gap_closed(held_out_loss),
        "curve": _curve(run_dir / "distill" / "metrics.jsonl"),
        "samples": _samples(evaluation, content.get("samples")),
        "parity": _numbers_of(parity, _read(parity), ("max_abs_logit_diff", "tolerance", "tokens")),
        **_manifests(run_dir),
    }
    return {key: value for key, value in numbers.items() if value not in (None, {}, [])}


def gap_closed(loss: dict[str, float]) -> float | None:
    """(pruned - distilled) / (pruned - source): 0 is no better than pruned, 1 as good as the source.

    Not clipped: negative says that distillation did harm, more than 1 that the student beats its teacher.
    None when a value is missing, or when pruning cost nothing and there is no gap.
    """
    if not loss.keys() >= set(ROLES) or loss["pruned"] <= loss["source"]:
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
        return Architecture(**_read(path))
    except (TypeError, ConfigError) as error:  # TypeError: a field is missing, or is none of ours
        raise DataError(f"{path}: {error}") from None


def _layers(scores: Path, pruned: Path) -> dict[str, Any]:
    measured = _read(scores)
    importance = measured.get("layers", [])
    if not isinstance(importance, list) or not all(_is_number(score) for score in importance):
        raise DataError(f"{scores}: layers: found {importance!r:.80}, allowed: a list of numbers")
    dropped = _read(pruned).get("dropped_layers", [])
    if not isinstance(dropped, list) or not all(type(layer) is int for layer in dropped):
        raise DataError(f"{pruned}: dropped_layers: found {dropped!r:.80}, allowed: a list of layer numbers")
    found = {"importance": importance, "method": measured.get("method"), "dropped": dropped}
    return {key: value for key, value in found.items() if value}


def _curve(path: Path) -> dict[str, list]:
    """Training and validation rows by rising step. A resumed run repeats steps: the later line counts."""
    curve: dict[str, dict] = {"training": {}, "validation": {}}
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _parse(path, line, number)
        except DataError:
            if number == len(lines):  # no newline ends it: the run was killed while it wrote
                break
            raise
        row = _numbers_of(f"{path}: line {number}", row, _CURVE, keep_null=True)
        if row.get("step") is None:
            raise DataError(f"{path}: line {number}: step: found nothing, allowed: a number")
        for kind, key in (("training", "loss"), ("validation", "held_out_loss")):
            if key in row:
                curve[kind][row["step"]] = row
    return {kind: [rows[step] for step in sorted(rows)] for kind, rows in curve.items() if rows}


def _search(path: Path) -> dict[str, Any]:
    """The file's content, whose numbers are numbers and whose lists are lists."""
    found = _read(path)
    if not found:
        return {}
    _needed(path, found, ("space", "feasible"))
    _needed(path, found, ("source_loss",) if "source_loss" in found else ())
    budgets, rejected = found.get("budgets"), found.get("rejected")
    _numbers_of(path, budgets, budgets if isinstance(budgets, dict) else (), "budgets.")
    groups = {"candidates": found.get("candidates")}
    if not isinstance(rejected, dict) or not all(isinstance(each, dict) for each in rejected.values()):
        raise DataError(f"{path}: rejected: found {rejected!r:.80}, allowed: an object of objects")
    for reason, each in rejected.items():
        _needed(path, each, ("count",), f"rejected.{reason}.")
        groups[f"rejected.{reason}.nearest"] = each.get("nearest")
    for name, rows in groups.items():
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: {name}: found {rows!r:.80}, allowed: a list of candidates")
        for row in rows:
            where = f"{name}.{row.get('name')}."
            _needed(path, row, ("parameters", "parameters_once", "memory_gib"), where)
            ranked = ("zero_shot_loss", "distilled_loss", "zero_shot_rank", "distilled_rank")
            _needed(path, row, ranked if "distilled_rank" in row else (), where)
            for key in ("zero_shot_loss_by_language", "distilled_loss_by_language"):
                _numbers_of(path, row.get(key), row.get(key) or (), f"{where}{key}.")
    return found


def _needed(path: Path, table: dict[str, Any], keys: Iterable[str], prefix: str = "") -> None:
    """Check that all these numbers are there."""
    found = _numbers_of(path, table, keys, prefix)
    for key in keys:
        if key not in found:
            raise DataError(f"{path}: {prefix}{key}: found nothing, allowed: a number")


def _by_language(path: Path, content: dict[str, Any], key: str = "held_out_loss_by_language") -> dict[str, dict]:
    roles = content.get(key) or {}
    if not isinstance(roles, dict):
        raise DataError(f"{path}: {key}: found {roles!r:.80}, allowed: an object of {', '.join(ROLES)}")
    found = {role: roles[role] for role in ROLES if roles.get(role)}
    losses = {role: _numbers_of(path, table, table, f"{key}.{role}.") for role, table in found.items()}
    return {role: each for role, each in losses.items() if each}


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
        manifest = _read(path)
        for value in _numbers_of(path, manifest, ["seconds"]).values():
            seconds[path.parent.name] = value
        packages = manifest.get("packages", {})
        if not isinstance(packages, dict):
            raise DataError(f"{path}: packages: found {packages!r:.80}, allowed: an object")
        for name, version in packages.items():
            versions.setdefault(name, {})[str(version)] = None
    return {"seconds": seconds, "packages": {name: ", ".join(versions[name]) for name in sorted(versions)}}


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file."""
    try:
        return _parse(path, path.read_bytes()) if path.is_file() else {}
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _parse(path: Path, data: bytes, first_line: int = 1) -> dict[str, Any]:
    """The JSON object in `data`, which begins at line `first_line` of the file."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=lambda name: None)
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise DataError(f"{path}: line {line}: found a byte that is not UTF-8") from None
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(f"{path}: line {line}: not valid JSON: {error.msg}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: line {first_line}: found {type(value).__name__}, allowed: a JSON object")
    return value


def _numbers_of(
    where: Path | str, table: Any, keys: Iterable[str], prefix: str = "", keep_null: bool = False
) -> dict[str, Any]:
    """The numbers that a JSON object has under these keys, and its nulls if asked to keep them."""
    if not isinstance(table or {}, dict):
        raise DataError(f"{where}: {prefix.rstrip('.')}: found {table!r:.80}, allowed: an object of numbers")
    found = {key: table[key] for key in keys if key in (table or {})}
    for key, value in found.items():
        if not _is_number(value):
            raise DataError(f"{where}: {prefix}{key}: found {value!r:.80}, allowed: a number")
    return {key: value for key, value in found.items() if keep_null or value is not None}


def _is_number(value: Any) -> bool:
    return value is None or type(value) in (int, float)
