"""Files in other formats: the numbers of the stage `quantize`, and its part of the page and of the terminal.

What report.json has of it, where the stage has run:

    formats    {tokens, loss: of the export by transformers, formats: [{name, path, bytes, bits_per_weight, loss,
               change: relative, runtime, imatrix}]}; losses in nats per token of the same held-out text
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from bielik_nemo.report import charts, markup, words
from bielik_nemo.report.files import numbers_of, read, rows_of, texts_of

_NUMBERS = ("bytes", "bits_per_weight", "loss", "change")


def collect(run_dir: Path) -> dict[str, Any]:
    """The numbers. Raises `DataError`."""
    path = run_dir / "quantize" / "metrics.json"
    content, rows = read(path), []
    for index, row in enumerate(rows_of(path, content, "formats")):
        where = f"formats[{index}]."
        texts = texts_of(path, row, ("name", "path", "runtime"), where)
        rows.append(
            {"name": "", **texts, **numbers_of(path, row, _NUMBERS, where), "imatrix": row.get("imatrix") is True}
        )
    return {"formats": numbers_of(path, content, ("tokens", "loss")) | {"formats": rows} if rows else {}}


def section(numbers: dict[str, Any]) -> str:
    """Size of each format against its loss, as a card of the page."""
    found = numbers.get("formats", {})
    if not found:
        return ""
    largest = max((row.get("bytes", 0) for row in found["formats"]), default=0)
    heads = ["Format", "Size", "", "Bits per<br>weight", "Loss<br>nats per token", "Change", "Measured with"]
    rows = [
        [
            escape(row["name"]) + ("<br><small>importance matrix</small>" if row["imatrix"] else ""),
            words.gigabytes(row["bytes"]) if "bytes" in row else "",
            markup.bar(row["bytes"] / largest) if row.get("bytes") else "",
            f"{row['bits_per_weight']:.2f}" if "bits_per_weight" in row else "",
            f"{row['loss']:.4f}" if "loss" in row else "",
            words.signed_percent(row["change"]) if "change" in row else "",
            escape(row.get("runtime", "")),
        ]
        for row in found["formats"]
    ]
    points = [
        (row["name"], row["bytes"] / 1e9, row["change"])
        for row in found["formats"]
        if {"bytes", "change"} <= row.keys()
    ]
    plot = markup.figure("Change of the loss", "by size", charts.sizes(points), wide=True) if len(points) > 1 else ""
    note = "Each file loaded by the runtime that is named"
    if "tokens" in found and "loss" in found:
        note += f", on {found['tokens']:,} held-out tokens; the export has {found['loss']:.4f} nats per token on them"
    kinds = ["number", "bar", "number", "number", "number", "text"]
    return markup.section("Formats", f"{note}.", plot + markup.table(heads, kinds, rows))


def table(numbers: dict[str, Any]) -> Table | None:
    """The same for a console."""
    found = numbers.get("formats", {})
    if not found:
        return None
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("format")
    for heading in ("size", "bits/weight", "loss", "change"):
        shown.add_column(heading, justify="right")
    shown.add_column("measured with")
    if "loss" in found:
        shown.add_row("(export)", "", "", f"{found['loss']:.4f}", "", "transformers")
    for row in found["formats"]:
        shown.add_row(
            Text(row["name"]),
            words.gigabytes(row["bytes"]) if "bytes" in row else "",
            f"{row['bits_per_weight']:.2f}" if "bits_per_weight" in row else "",
            f"{row['loss']:.4f}" if "loss" in row else "",
            f"{100 * row['change']:+.2f} %" if "change" in row else "",
            Text(row.get("runtime", "")),
        )
    return shown
