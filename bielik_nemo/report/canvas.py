"""What every plot of the report is drawn on: matplotlib figures as SVG text that stands inside the page.

The text of a plot stays text, in the page's own font and colours, so that it follows the light or dark screen
(style.py). Nothing goes through pyplot or a user's matplotlibrc, and the same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING, Any

from bielik_nemo.report.style import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOUR = {name: light for name, (light, _) in PALETTE.items()}
# Inches of width and height. The page scales a plot to its column, text and all.
WIDE, FLAT, PANEL, LOW = (8.6, 2.7), (8.6, 2.0), (4.2, 2.3), (4.2, 1.5)
STEPS = (1, 2, 2.5, 5, 10)


def svg(title: str, size: tuple[float, float], paint: Any) -> str:
    """Draw on fresh axes and return one <svg> element, named `title` for those who cannot see it."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        muted, line = COLOUR["muted"], COLOUR["line"]
        matplotlib.rcParams.update({"svg.hashsalt": title, "svg.fonttype": "none", "font.size": 7.5})
        matplotlib.rcParams["text.parse_math"] = False  # a name may have a dollar sign
        matplotlib.rcParams.update({f"{axis}tick.labelcolor": muted for axis in "xy"})
        matplotlib.rcParams.update({"axes.labelcolor": muted, "axes.edgecolor": line, "hatch.linewidth": 1.2})
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(axis="y", color=line, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3 if size == LOW else 5, steps=STEPS))
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
    for name, colour in COLOUR.items():
        body = body.replace(colour, f"var(--{name})")
    named = escape(title)
    return f'<svg viewBox="{box}" role="img" aria-label="{named}"><title>{named}</title>{body}'


def legend(axes: Axes) -> None:
    """Name the lines above the axes."""
    where = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "ncols": 4, "borderaxespad": 0.2}
    axes.legend(**where, frameon=False, handlelength=1.8, columnspacing=1.6, labelcolor=COLOUR["ink"])


def number(value: float | None) -> float:
    """A number, NaN where it is null: a gap in a line, no bar."""
    return float("nan") if value is None else value
