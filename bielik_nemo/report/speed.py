"""Speed of generation beside its limit: the numbers of the stage `benchmark`, and its part of the page and terminal.

What report.json has of it, where the stage has run:

    speed    {engine, device, dtype, bandwidth_gb_s, points: [{model, input_tokens, output_tokens, concurrency, ttft_ms,
             tpot_ms, tokens_per_second, peak_memory_gib, limit_tpot_ms, limit_tokens_per_second, bytes_per_token}],
             ratios: [{model, input_tokens, output_tokens, concurrency, speedup, limit_speedup}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from bielik_nemo.errors import DataError
from bielik_nemo.report import charts, markup, words
from bielik_nemo.report.files import numbers_of, read, rows_of, texts_of

_SHAPE = ("input_tokens", "output_tokens", "concurrency")
_MEASURED = ("ttft_ms", "tpot_ms", "tokens_per_second", "peak_memory_gib", "limit_tpot_ms", "limit_tokens_per_second")
_RATIOS = ("speedup", "limit_speedup")


def collect(run_dir: Path) -> dict[str, Any]:
    """The numbers. Raises `DataError`."""
    path = run_dir / "benchmark" / "metrics.json"
    content = read(path)
    facts = texts_of(path, content, ("engine", "device", "dtype")) | numbers_of(path, content, ["bandwidth_gb_s"])
    points = _rows(path, content, "points", (*_MEASURED, "bytes_per_token"))
    ratios = _rows(path, content, "ratios", _RATIOS)
    return {"speed": facts | {"points": points, "ratios": ratios} if points else {}}


def _rows(path: Path, content: dict[str, Any], key: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    found = []
    for index, row in enumerate(rows_of(path, content, key)):
        where = f"{key}[{index}]."
        named = texts_of(path, row, ["model"], where) | numbers_of(path, row, _SHAPE, where)
        if missing := [name for name in ("model", *_SHAPE) if name not in named]:
            raise DataError(f"{path}: {where}{missing[0]}: found nothing, allowed: a name, or a number")
        found.append(named | numbers_of(path, row, columns, where))
    order = words.ordered(row["model"] for row in found)
    return sorted(found, key=lambda row: ([row[name] for name in _SHAPE], order.index(row["model"])))


def section(numbers: dict[str, Any]) -> str:
    """Speed of every model at every load, as a card of the page."""
    found = numbers.get("speed", {})
    points = [row for row in found.get("points", []) if "tokens_per_second" in row]
    if not points:
        return ""
    ratios = {_key(row): row for row in found["ratios"]}
    heads = [
        "Tokens in+out,<br>x at once",
        "Model",
        "First token<br>ms",
        "Each further<br>ms",
        "Tokens per<br>second",
        "Limit",
    ]
    heads += [
        "Of the limit",
        "Memory<br>GiB",
        "Speed-up<br>(its limit)",
    ]
    rows = [
        [
            _load(row),
            markup.model(row["model"]),
            *(number(row, key) for key in ("ttft_ms", "tpot_ms", "tokens_per_second", "limit_tokens_per_second")),
            _of_limit(row),
            number(row, "peak_memory_gib"),
            _speedup(ratios.get(_key(row), {})),
        ]
        for row in points
    ]
    bars = [
        (f"{_load(row)}, {words.model(row['model'])}", row["model"], row["tokens_per_second"],
         row.get("limit_tokens_per_second"))
        for row in points
    ]  # fmt: skip
    plot = charts.against_limit(bars, "tokens per second", "Tokens per second of each load and model")
    facts = [escape(found[key]) for key in ("engine", "device", "dtype") if key in found]
    facts += [f"{found['bandwidth_gb_s']:,.1f} GB/s"] if "bandwidth_gb_s" in found else []
    note = f"{', '.join(facts)}. The limit is what reading the weights and the KV cache once per step leaves possible."
    body = markup.figure("", "", plot, wide=True) + markup.table(heads, ["text"] + ["number"] * 7, rows)
    return markup.section("Speed", note, body)


def table(numbers: dict[str, Any]) -> Table | None:
    """The same for a console."""
    found = numbers.get("speed", {})
    if not found:
        return None
    ratios = {_key(row): row for row in found["ratios"]}
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column("in+out\nx at once")
    shown.add_column("model")
    for heading in ("first\nms", "token\nms", "tokens/s", "limit", "GiB", "speed-up\n(limit)"):
        shown.add_column(heading, justify="right", no_wrap=True)
    keys = ("ttft_ms", "tpot_ms", "tokens_per_second", "limit_tokens_per_second", "peak_memory_gib")
    for row in found["points"]:
        told = (number(row, key) for key in keys)
        shown.add_row(_load(row), Text(row["model"]), *told, _speedup(ratios.get(_key(row), {})))
    return shown


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (row["model"], *(row[name] for name in _SHAPE))


def _load(row: Mapping[str, Any]) -> str:
    return f"{row['input_tokens']:,}+{row['output_tokens']:,} x{row['concurrency']}"


def number(row: Mapping[str, Any], key: str) -> str:
    """In three digits, or whole; empty where it is not known."""
    if key not in row:
        return ""
    return f"{row[key]:,.0f}" if row[key] >= 1000 else f"{row[key]:.3g}"


def _speedup(ratio: Mapping[str, Any]) -> str:
    limit = f" ({ratio['limit_speedup']:.2f})" if "limit_speedup" in ratio else ""
    return f"{ratio['speedup']:.2f}{limit}" if "speedup" in ratio else ""


def _of_limit(row: Mapping[str, Any]) -> str:
    return words.percent(row["tokens_per_second"] / limit) if (limit := row.get("limit_tokens_per_second")) else ""
