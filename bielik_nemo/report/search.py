"""The search for a shape, on the terminal and on the page: its candidates, how distillation ranked them, what fell out.

Works on the content of `search/candidates.json`, which is what report.json has under `search`.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bielik_nemo.report import markup, plots, words

SHOWN = 10
"""Rows, where no more of them were distilled."""

LOSSES = ("pruned", "distilled")
"""Columns that hold a loss."""
GIVES_WAY = {"GiB": "max_memory_gib", "ms": "max_latency_ms", "retained": "no budget"}
"""Columns that the terminal leaves out beside losses, unless they are budgets."""

Row = dict[str, Any]


def candidates(found: dict[str, Any]) -> Group:
    """The search for a console; fits 80 columns."""
    parts = [Text(summary(found)), _best(found)]
    if found["rejected"]:
        parts.append(_rejected(found["rejected"]))
    return Group(*parts)


def section(found: dict[str, Any]) -> str:
    """The search as a card of the page."""
    told, ranked = columns(found), [row for row in listed(found) if "distilled_rank" in row]
    languages = sorted({name for row in ranked for name in row.get("distilled_loss_by_language", {})})
    heads = ["Candidate", *map(_capital, told), *(f"Distilled,<br>{escape(name)}" for name in languages)]
    rows = [
        [escape(row["name"]), *(escape(tell(row)) for tell in told.values()), *_languages(row, languages)]
        for row in listed(found)
    ]
    if ranked and "source_loss" in found:
        loss = f"{found['source_loss']:.3f}"
        rows.insert(0, ["not pruned", *(loss if name in LOSSES else "" for name in told), *("" for _ in languages)])
    body = markup.table(heads, ["number"] * len(heads[1:]), rows)
    note = escape(summary(found)) + ". " + _verdict(ranked)
    if len(ranked) > 1:
        points = [(row["name"], row["zero_shot_loss"], row["distilled_loss"]) for row in ranked]
        caption = "<figcaption><b>Distilled against pruned</b> held-out loss, best first</figcaption>"
        body += f'<figure class="wide">{caption}{plots.ranks(points, found.get("source_loss"))}</figure>'
    if found["rejected"]:
        left_out = [
            [escape(reason), f"{each['count']:,}", escape(", ".join(row["name"] for row in each["nearest"]))]
            for reason, each in found["rejected"].items()
        ]
        body += markup.table(["Left out because", "Shapes", "Nearest"], ["number", "number"], left_out)
    return markup.section("Search", note.strip(), body)


def summary(found: dict[str, Any]) -> str:
    """What was asked, and how many shapes are left of how many."""
    limits = ", ".join(f"{name.removeprefix('max_')} {limit:,.12g}" for name, limit in found["budgets"].items())
    once = found["embeddings"] == "once" and "max_parameters" in found["budgets"]
    limits += ", one embedding matrix counted" if once else ""
    return f"{found['feasible']:,} of {found['space']:,} shapes fit the budget ({limits})"


def listed(found: dict[str, Any]) -> list[Row]:
    """The candidates that are worth a row: those that were distilled, best first, then the next ones."""
    tried = [row for row in found["candidates"] if "distilled_rank" in row or "failed" in row]
    rest = [row for row in found["candidates"] if row not in tried]
    last = len(found["candidates"])
    ranked = sorted(tried, key=lambda row: row.get("distilled_rank", last))
    return [*ranked, *rest[: max(SHOWN - len(ranked), 0)]]


def columns(found: dict[str, Any]) -> dict[str, Callable[[Row], str]]:
    """What the rows have to tell: {heading: how a row says it}, without the columns that all rows leave empty."""
    size = "parameters_once" if found["embeddings"] == "once" else "parameters"
    told = {
        "parameters": lambda row: words.count(row[size]),
        "GiB": lambda row: f"{row['memory_gib']:.3g}",
        "ms": lambda row: _number(row, "latency_ms", ".3g"),
        "retained": lambda row: _number(row, "retained", ".3f"),
        "pruned": lambda row: _number(row, "zero_shot_loss", ".3f"),
        "rank": lambda row: _number(row, "zero_shot_rank", "d"),
        "distilled": lambda row: "failed" if "failed" in row else _number(row, "distilled_loss", ".3f"),
        "rank ": lambda row: _number(row, "distilled_rank", "d"),
    }
    return {heading: tell for heading, tell in told.items() if any(map(tell, listed(found)))}


def _number(row: Row, key: str, style: str) -> str:
    return "" if row.get(key) is None else format(row[key], style)


def _languages(row: Row, languages: list[str]) -> list[str]:
    losses = row.get("distilled_loss_by_language", {})
    return [f"{losses[name]:.3f}" if name in losses else "" for name in languages]


def _verdict(ranked: list[Row]) -> str:
    """Whether distillation changed the order."""
    if len(ranked) < 2:
        return ""
    moved = sum(row["zero_shot_rank"] != row["distilled_rank"] for row in ranked)
    best = min(ranked, key=lambda row: row["distilled_rank"])
    change = f"changed the rank of {moved} of {len(ranked)}" if moved else f"left all {len(ranked)} in their order"
    before = f", {words.ordinal(best['zero_shot_rank'])} before it" if moved else ""
    return f"The short distillation {change}; the best is {escape(best['name'])}{before}."


def _best(found: dict[str, Any]) -> Table:
    told = columns(found)
    if "distilled" in told:  # 80 columns do not hold all of them
        told = {name: tell for name, tell in told.items() if GIVES_WAY.get(name) in {None, *found["budgets"]}}
    best = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    best.add_column("candidate", no_wrap=True)
    for heading in told:
        best.add_column(heading.strip(), justify="right")
    if "source_loss" in found and "pruned" in told:
        loss = f"{found['source_loss']:.3f}"
        best.add_row("(not pruned)", *(loss if heading in LOSSES else "" for heading in told))
    for row in listed(found):
        best.add_row(Text(row["name"]), *(tell(row) for tell in told.values()))
    return best


def _rejected(rejected: dict[str, Any]) -> Table:
    others = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    others.add_column("left out because")
    others.add_column("shapes", justify="right")
    others.add_column("nearest")
    for reason, each in rejected.items():
        names = ", ".join(row["name"] for row in each["nearest"][:1])
        others.add_row(Text(reason), f"{each['count']:,}", Text(names))
    return others


def _capital(heading: str) -> str:
    heading = heading.strip()
    return heading if heading in ("ms", "GiB") else heading.capitalize()
