"""The report as a terminal table. Plain ASCII words and no meaning in colour alone; fits 80 columns."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.text import Text

from bielik_nemo.report import alignment, benchmarks, cost, formats, quality, rewards, speed, tokenizers, words
from bielik_nemo.report.search import candidates

NOTHING = "No stage of this run has finished yet."


def table(numbers: dict[str, Any]) -> Group:
    """The numbers of `collect` for a console: every model, what it kept, speed, sizes, time of the stages, parity."""
    sentences = words.sentences(numbers)
    parts = [Text("\n".join(sentences) or ("" if "seconds" in numbers else NOTHING))]
    tables = (quality, alignment, rewards, benchmarks, speed, formats, tokenizers)
    parts += [found for found in (module.table(numbers) for module in tables) if found]
    if "search" in numbers:
        parts.append(candidates(numbers["search"]))
    if spent := cost.table(numbers):
        parts.append(spent)
    if "max_abs_logit_diff" in numbers.get("parity", {}):
        parts.append(_parity(numbers["parity"]))
    return Group(*parts)


def _parity(parity: dict[str, float]) -> Text:
    allowed = f" (allowed {parity['tolerance']:.0e})" if "tolerance" in parity else ""
    verdict = words.parity_verdict(parity)
    found = f"export: largest logit difference {parity['max_abs_logit_diff']:.1e}{allowed}"
    return Text(f"{found}: {verdict}" if verdict else found)
