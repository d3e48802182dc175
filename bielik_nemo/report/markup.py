"""The few pieces of HTML that the page is built of. Arguments are HTML already, except those of `value`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bielik_nemo.report import words

# What stands in a table's column: class of its cells.
_CELLS = {"text": "", "number": ' class="num"', "bar": ' class="barcell"'}

_SPELT = {"sft": "SFT", "dpo": "DPO", "grpo": "GRPO"}


def section(title: str, note: str, body: str) -> str:
    """A card with a heading and, if there is one, a note under it."""
    note = f"<p>{note}</p>\n" if note else ""
    return f"<section>\n<h2>{title}</h2>\n{note}{body}\n</section>"


def table(
    heads: Sequence[str],
    kinds: Sequence[str],
    rows: Sequence[Sequence[str]],
    foot: Sequence[str] | None = None,
    unchanged: Sequence[bool] | None = None,
) -> str:
    """A table whose first column names its rows; `kinds` (keys of _CELLS) describes each other column.

    `unchanged` marks the rows to be shown paler.
    """
    classes = [_CELLS[kind] for kind in kinds]

    def line(cells: Sequence[str], tag: str, opening: str = "<tr>", scope: str = "row") -> str:
        first = f'<th scope="{scope}">{cells[0]}</th>' if cells[0] else "<td></td>"
        scoped = ' scope="col"' if tag == "th" else ""
        rest = (f"<{tag}{scoped}{css}>{cell}</{tag}>" for css, cell in zip(classes, cells[1:], strict=True))
        return f"{opening}{first}{''.join(rest)}</tr>\n"

    pale = unchanged or [False] * len(rows)
    body = "".join(
        line(row, "td", '<tr class="same">' if same else "<tr>") for row, same in zip(rows, pale, strict=True)
    )
    end = f"<tfoot>\n{line(foot, 'td')}</tfoot>\n" if foot else ""
    return (
        f'<div class="wide"><table>\n<thead>\n{line(heads, "th", scope="col")}</thead>\n'
        f"<tbody>\n{body}</tbody>\n{end}</table></div>"
    )


def bar(share: float, role: str = "") -> str:
    """A bar over `share` (0..1) of its cell. It repeats the number beside it, so it is not read out."""
    return f'<span class="bar {role}" style="width:{100 * share:.1f}%" aria-hidden="true"></span>'


def model(role: str) -> str:
    """The name of a model after a dot of its colour."""
    dot = f'<span class="dot {role}" aria-hidden="true"></span>'
    return f'<span class="model">{dot}{_SPELT.get(role, role.capitalize())}</span>'


def by_model(heading: str, losses: Mapping[str, Mapping[str, float]]) -> str:
    """A table of losses, a column for each model and a row for each name that one has; empty without any."""
    names = dict.fromkeys(name for each in losses.values() for name in each)
    rows = [[escape(n), *(f"{each[n]:.3f}" if n in each else "" for each in losses.values())] for n in names]
    return table([heading, *map(model, losses)], ["number"] * len(losses), rows) if rows else ""


def value(thing: Any) -> str:
    """One field of an architecture."""
    if isinstance(thing, bool):
        return "yes" if thing else "no"
    if isinstance(thing, int) or (isinstance(thing, float) and thing.is_integer()):
        return f"{thing:,.0f}"
    return escape(str(thing))


def difference(before: Any, after: Any) -> str:
    """What changed from one value to the other, absolutely and in percent; empty if nothing did."""
    if before == after:
        return ""
    if not all(type(thing) in (int, float) for thing in (before, after)) or not before:
        return "changed"
    return f"{after - before:+,}".replace("-", "\N{MINUS SIGN}") + f" ({words.change(before, after)})"
