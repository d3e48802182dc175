"""The few pieces of HTML that the page is built of. Arguments are HTML already, except those of `value`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bielik_nemo.report import words

# What stands in a table's column: class of its cells.
_CELLS = {"text": "", "number": ' class="num"', "bar": ' class="barcell"'}


def section(title: str, note: str, body: str) -> str:
    """A card with a heading and, if there is one, a note under it."""
    note = f"<p>{note}</p>\n" if note else ""
    return f"<section>\n<h2>{title}</h2>\n{note}{body}\n</section>"


def figure(title: str, unit: str, plot: str, wide: bool = False) -> str:
    """A plot under its caption, as wide as the card or one of several side by side (`panels`)."""
    caption = f"<figcaption><b>{title}</b> {unit}</figcaption>" if title else ""
    css = ' class="wide"' if wide else ""
    return f"<figure{css}>{caption}{plot}</figure>"


def panels(figures: Sequence[str]) -> str:
    """Figures side by side; empty without any."""
    return f'<div class="panels">{"".join(figures)}</div>' if figures else ""


def verdict(text: str, kind: str = "") -> str:
    """A badge; `kind` is good, bad or neither."""
    return f'<span class="verdict {kind}">{text}</span>'


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


def bar(share: float, name: str = "") -> str:
    """A bar over `share` (0..1) of its cell, in a model's colour. It repeats a number, so it is not read out."""
    return (
        f'<span class="bar {colour(name) if name else ""}" style="width:{100 * share:.1f}%" aria-hidden="true"></span>'
    )


def model(name: str) -> str:
    """The name of a model after a dot of its colour."""
    dot = f'<span class="dot {colour(name)}" aria-hidden="true"></span>'
    return f'<span class="model">{dot}{escape(words.model(name))}</span>'


def colour(name: str) -> str:
    """The name, in the style sheet and among the plots' colours, of a model's colour."""
    return name if name in words.ROLES else "other"


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
