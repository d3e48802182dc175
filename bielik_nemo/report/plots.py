"""The report's plots: matplotlib figures as SVG text that stands inside the page.

The text of a plot stays text, in the page's own font and colours, so that it follows the light or dark screen
(style.py). Nothing goes through pyplot or a user's matplotlibrc, and the same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from bielik_nemo.report.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOUR = {name: light for name, (light, _) in PALETTE.items()}
# Inches of width and height. The page scales a plot to its column, text and all.
_WIDE, _PANEL, _LOW = (8.6, 2.7), (4.2, 2.3), (4.2, 1.5)
_DASHES = {"source": (5, 3), "pruned": (1.5, 2)}
_MANY_POINTS = 40


def layer_bars(importance: Sequence[float | None], dropped: Sequence[int]) -> str:
    """A bar per layer, counted from 0; dropped ones in another colour, and hatched for who sees none."""
    gone = set(dropped)

    def paint(axes: Axes) -> None:
        for label, colour, hatch in (("kept", "source", None), ("dropped", "pruned", "////")):
            chosen = [layer for layer in range(len(importance)) if (layer in gone) == (label == "dropped")]
            if chosen:
                heights = [_number(importance[layer]) for layer in chosen]
                style = {"color": _COLOUR[colour], "width": 0.72, "label": f"{label} ({len(chosen)})"}
                edge = {"edgecolor": _COLOUR["card"], "linewidth": 0} if hatch else {}
                axes.bar(chosen, heights, hatch=hatch, **style, **edge)
        axes.set_xlim(-0.8, len(importance) - 0.2)
        axes.set_xlabel("layer, counted from 0", loc="right")
        _legend(axes)

    listed = ", ".join(str(layer) for layer in sorted(gone)) or "none"
    return _svg(f"Importance of each of {len(importance)} layers; dropped: {listed}", _WIDE, paint)


def curve(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    key: str,
    levels: Mapping[str, float] | None = None,
    minor: bool = False,
) -> str:
    """One column of the metrics against the step, where a null leaves a gap in the line.

    `levels` are horizontal lines {role: height}; a `minor` curve is low and without colour.
    """
    steps = [row["step"] for row in rows]
    values = [_number(row.get(key)) for row in rows]

    def paint(axes: Axes) -> None:
        marker = "o" if len(rows) <= _MANY_POINTS else None
        style = {"linewidth": 1.5, "marker": marker, "markersize": 3}
        axes.plot(steps, values, color=_COLOUR["muted" if minor else "distilled"], label="distilled", **style)
        for role, height in (levels or {}).items():
            style = {"linewidth": 1.4, "dashes": _DASHES[role], "label": f"{role} {height:.3f}"}
            axes.axhline(height, color=_COLOUR[role], **style)
        if levels:
            _legend(axes)
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("step", loc="right")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}" if 0 < value < 0.01 else f"{value:g}")

    return _svg(title, _LOW if minor else _PANEL, paint)


def ranks(title: str, points: Sequence[tuple[float, float, int]]) -> str:
    """One point per candidate: loss when pruned, loss when distilled, and the rank that stands beside it."""

    def paint(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        across, up, labels = zip(*points, strict=True)
        axes.scatter(across, up, s=22, color=_COLOUR["distilled"])
        for x, y, label in zip(across, up, labels, strict=True):
            offset = {"xytext": (5, 3), "textcoords": "offset points"}
            axes.annotate(str(label), (x, y), **offset, color=_COLOUR["ink"])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.margins(0.12)
        axes.set_xlabel("pruned, nats per token", loc="right")

    listed = "; ".join(f"rank {rank}: {pruned:.3f}, {distilled:.3f}" for pruned, distilled, rank in points)
    return _svg(f"{title}. {listed}", _PANEL, paint)


def _svg(title: str, size: tuple[float, float], paint: Any) -> str:
    """Draw on fresh axes and return one <svg> element, named `title` for those who cannot see it."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        muted, line = _COLOUR["muted"], _COLOUR["line"]
        matplotlib.rcParams.update({"svg.hashsalt": title, "svg.fonttype": "none", "font.size": 7.5})
        matplotlib.rcParams.update({f"{axis}tick.labelcolor": muted for axis in "xy"})
        matplotlib.rcParams.update({"axes.labelcolor": muted, "axes.edgecolor": line, "hatch.linewidth": 1.2})
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(axis="y", color=line, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3 if size == _LOW else 5, steps=[1, 2, 2.5, 5, 10]))
        paint(axes)
        file = io.StringIO()
        nobody = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nobody)
    return _inline(file.getvalue(), title)


def _inline(text: str, title: str) -> str:
    """Make an SVG file part of a page: no prologue, fixed size or repeated ids; colours by name."""
    box, body = re.search(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>(.*)', text, re.DOTALL).groups()
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    for name, colour in _COLOUR.items():
        body = body.replace(colour, f"var(--{name})")
    named = escape(title)
    return f'<svg viewBox="{box}" role="img" aria-label="{named}"><title>{named}</title>{body}'


def _legend(axes: Axes) -> None:
    where = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "ncols": 3, "borderaxespad": 0.2}
    axes.legend(**where, frameon=False, handlelength=1.8, columnspacing=1.6, labelcolor=_COLOUR["ink"])


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
