"""The shape before and after: its numbers, its drawing, which layers mattered, and what the refits made up for."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bielik_nemo.architecture import Architecture
from bielik_nemo.errors import ConfigError, DataError
from bielik_nemo.report import charts, markup, plots, words
from bielik_nemo.report.files import is_number, numbers_of, read


def collect(run_dir: Path) -> dict[str, Any]:
    """The numbers. Raises `DataError`."""
    pruned = run_dir / "prune" / "pruned.json"
    return {
        **_architectures(run_dir),
        "layers": _layers(run_dir / "score" / "importance.json", pruned),
        "compensation": _compensation(pruned),
    }


def _architectures(run_dir: Path) -> dict[str, Any]:
    swapped = run_dir / "swap_tokenizer"  # from there on its model is the source
    paths = {"source": swapped if swapped.is_dir() else run_dir / "import_hf", "target": run_dir / "prune"}
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


def section(numbers: dict[str, Any]) -> str:
    """All of it as cards of the page."""
    return "\n".join(filter(None, (card(numbers) for card in (_architecture, _importance, _refits))))


def _architecture(numbers: dict[str, Any]) -> str:
    shapes, sizes = numbers.get("architecture", {}), numbers.get("parameters", {})
    if not shapes:
        return ""
    lines = {"parameters": [sizes[role] for role in shapes]}
    if words.counts_differ(numbers):
        lines["parameters, one of the two embedding matrices left out"] = [sizes[f"{role}_once"] for role in shapes]
    for name in next(iter(shapes.values())):
        lines[name] = [shape[name] for shape in shapes.values()]
    lines = {name: values for name, values in lines.items() if any(value is not None for value in values)}
    heads = ["", *("After" if role == "target" else "Before" if len(shapes) > 1 else "Source" for role in shapes)]
    rows = [[name, *map(markup.value, values)] for name, values in lines.items()]
    same = None
    if len(shapes) == 2:
        heads.append("Difference")
        same = [before == after for before, after in lines.values()]
        for row, values in zip(rows, lines.values(), strict=True):
            row.append(markup.difference(*values))
    body = markup.table(heads, ["number"] * len(heads[1:]), rows, unchanged=same)
    note = ""
    if len(shapes) == 2:
        drawing = charts.anatomy(shapes["source"], shapes["target"], numbers.get("layers", {}).get("dropped", []))
        body = markup.figure("", "", drawing, wide=True) + body
        note = "Every area is a number of parameters, on one scale; a layer that was dropped leaves a gap."
    return markup.section("Architecture", note, body)


_BLOCK_INFLUENCE = (
    "Block Influence: how far a layer turns what passes through it (1 minus the cosine similarity of its "
    "input and output). Higher is more important."
)


def _importance(numbers: dict[str, Any]) -> str:
    layers = numbers.get("layers", {})
    if "importance" not in layers:
        return ""
    method, note = layers.get("method"), _BLOCK_INFLUENCE
    if method == "loss_increase":
        note = "By how much the loss on calibration text rises without the layer, in nats per token."
    if method == "contiguous_block":
        note += " What to drop was chosen by the loss without each block of layers, not by this."
    dropped = layers.get("dropped", [])
    if dropped:
        note += f" Dropped: {', '.join(map(str, sorted(dropped)))}."
    svg = plots.layer_bars(layers["importance"], dropped)
    return markup.section("Importance of each layer", note, markup.figure("", "", svg, wide=True))


def _refits(numbers: dict[str, Any]) -> str:
    if "compensation" not in numbers:
        return ""
    note = (
        "Squared error of the hidden stream relative to the source's, on the calibration text, behind each part of a "
        "kept layer before and after its refit (what lies before it is refitted already)."
    )
    svg = plots.refits(numbers["compensation"])
    return markup.section("Compensation", note, markup.figure("", "", svg, wide=True))
