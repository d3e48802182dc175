"""The report as a terminal table. Plain ASCII words and no meaning in colour alone; fits 80 columns."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from bielik_nemo.report import alignment, rewards, words
from bielik_nemo.report.search import candidates

NOTHING = "No stage of this run has finished yet."


def table(numbers: dict[str, Any]) -> Group:
    """The numbers of `collect` for a console: the three models, seconds per stage, parity of the export."""
    parts = [Text("\n".join(words.sentences(numbers)) or ("" if "seconds" in numbers else NOTHING))]
    if words.sentences(numbers):
        parts.append(_models(numbers))
    if answers := alignment.table(numbers):
        parts.append(answers)
    if tasks := rewards.table(numbers):
        parts.append(tasks)
    if "search" in numbers:
        parts.append(candidates(numbers["search"]))
    if "seconds" in numbers:
        parts.append(_stages(numbers["seconds"]))
    if "max_abs_logit_diff" in numbers.get("parity", {}):
        parts.append(_parity(numbers["parity"]))
    return Group(*parts)


def _models(numbers: dict[str, Any]) -> Table:
    both = words.counts_differ(numbers)
    losses, perplexities = numbers.get("held_out_loss", {}), numbers.get("perplexity", {})
    models = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    models.add_column("model")
    sizes = ["parameters", "embeddings\nonce"][: 1 + both]
    for heading in (*sizes, "held-out loss\nnats/token", "perplexity", "gap closed"):
        models.add_column(heading, justify="right")
    for role in words.ROLES:
        if role not in losses and (role not in ("source", "pruned") or not words.size(numbers, role)):
            continue
        sizes = [words.size(numbers, role, once) for once in (False, True)[: 1 + both]]
        models.add_row(
            role,
            *[words.count(number) if number else "" for number in sizes],
            f"{losses[role]:.3f}" if role in losses else "",
            words.perplexity(perplexities[role]) if role in perplexities else "",
            words.percent(numbers["gap_closed"]) if role == "distilled" and "gap_closed" in numbers else "",
        )
    return models


def _stages(seconds: dict[str, float]) -> Table:
    total = sum(seconds.values())
    stages = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    stages.add_column("stage", "total")
    stages.add_column("seconds", f"{total:,.1f}", justify="right")
    stages.add_column("time", words.duration(total), justify="right")
    for stage, value in seconds.items():
        stages.add_row(Text(stage), f"{value:,.1f}", words.duration(value))
    return stages


def _parity(parity: dict[str, float]) -> Text:
    allowed = f" (allowed {parity['tolerance']:.0e})" if "tolerance" in parity else ""
    verdict = words.parity_verdict(parity)
    found = f"export: largest logit difference {parity['max_abs_logit_diff']:.1e}{allowed}"
    return Text(f"{found}: {verdict}" if verdict else found)
