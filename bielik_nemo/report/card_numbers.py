"""The numbers of a model card as Markdown: quality by stage, what was kept of benchmarks, speed, formats.

Each takes the numbers of a run's report and gives a section, or nothing where they are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bielik_nemo.report import benchmarks, words
from bielik_nemo.report import quality as measured
from bielik_nemo.report import speed as rates


def section(heading: str, *parts: str) -> str:
    """A heading and what is below it; empty without any."""
    return "\n\n".join([f"## {heading}", *filter(None, parts)]) if any(parts) else ""


def quality(numbers: Mapping[str, Any]) -> str:
    """Every measure of every model."""
    every = measured.measures(numbers)
    if not every:
        return ""
    names = words.ordered(name for measure in every for name in measure.values)
    rows = [
        [
            ", ".join(filter(None, (measure.name, measure.unit))),
            *(measure.spell(measure.values[name]) if name in measure.values else "" for name in names),
        ]
        for measure in every
    ]
    note = "Every model on the way here, and any that it is compared with, on data that no stage learned from."
    return section("Quality by stage", note, table(["", *map(words.model, names)], rows))


def kept(numbers: Mapping[str, Any]) -> str:
    """Recovery of every task, best first."""
    found = numbers.get("benchmarks", {})
    model = benchmarks.newest(found)
    rows = [
        [row["name"], *(_score(value) for value in row["scores"].values()), benchmarks.spelt(row), row["verdict"]]
        for row in benchmarks.retention(found, model)
    ]
    if not rows:
        return ""
    mean = found.get("mean", {}).get(model) or {}
    if mean.get("value") is not None:
        rows.append(["**on average**", "", "", benchmarks.spelt(mean), mean.get("verdict") or ""])
    share = f" and its {100 * found['confidence']:g} % interval" if found.get("confidence") else ""
    note = f"By lm-evaluation-harness: what was kept of the source's score{share}, best first."
    heads = ["task", words.model(found.get("teacher", "source")), words.model(model), "kept", ""]
    return section("Benchmarks", note, table(heads, rows))


def speed(numbers: Mapping[str, Any]) -> str:
    """Every model under every load."""
    found = numbers.get("speed", {})
    keys = ("input_tokens", "output_tokens", "concurrency", "ttft_ms", "tpot_ms", "tokens_per_second")
    rows = [[words.model(row["model"]), *(rates.number(row, key) for key in keys)] for row in found.get("points", [])]
    heads = ["model", "tokens in", "tokens out", "at once", "first token, ms", "each further, ms", "tokens per second"]
    where = ", ".join(str(found[key]) for key in ("engine", "device", "dtype") if key in found)
    return section("Speed", f"{where}." if where else "", table(heads, rows)) if rows else ""


def formats(numbers: Mapping[str, Any]) -> str:
    """Size and loss of every format."""
    found = numbers.get("formats", {})
    rows = [
        [row["name"], size(row), spelt(row, "bits_per_weight", ".2f"), change(row), row.get("runtime", "")]
        for row in found.get("formats", [])
    ]
    heads = ["format", "size", "bits per weight", "change of the loss", "measured with"]
    return section("Formats", table(heads, rows)) if rows else ""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def cell(text: str) -> str:
    """A text that can neither end its cell nor open a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def size(row: Mapping[str, Any]) -> str:
    """Of a format, where it is known."""
    return words.gigabytes(row["bytes"]) if "bytes" in row else ""


def spelt(row: Mapping[str, Any], key: str, style: str) -> str:
    """A number of a format, where it is known."""
    return format(row[key], style) if row.get(key) is not None else ""


def change(row: Mapping[str, Any]) -> str:
    """By how much the loss changed, where it is known."""
    return words.signed_percent(row["change"]) if row.get("change") is not None else ""
