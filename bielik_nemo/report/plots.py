"""The report's plots of what stages measured: curves, layers, candidates, refits (see canvas.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bielik_nemo.report import markup
from bielik_nemo.report.canvas import COLOUR, FLAT, LOW, PANEL, STEPS, WIDE, legend, number, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A line of text as a share of the height of a wide plot's axes.
_LINE = 0.07
_DASHES = {"source": (5, 3), "pruned": (1.5, 2)}
_PARTS = {"attention": ("attention", "source"), "ffn": ("FFN", "distilled")}
_MANY_POINTS = 40
# Colours of the lines of one plot, in turn.
_LINES = ("distilled", "pruned", "source", "sft", "dpo", "merged")


def layer_bars(importance: Sequence[float | None], dropped: Sequence[int]) -> str:
    """A bar per layer, counted from 0; dropped ones in another colour, and hatched for who sees none."""
    gone = set(dropped)

    def paint(axes: Axes) -> None:
        for label, colour, hatch in (("kept", "source", None), ("dropped", "pruned", "////")):
            chosen = [layer for layer in range(len(importance)) if (layer in gone) == (label == "dropped")]
            if chosen:
                heights = [number(importance[layer]) for layer in chosen]
                style = {"color": COLOUR[colour], "width": 0.72, "label": f"{label} ({len(chosen)})"}
                edge = {"edgecolor": COLOUR["card"], "linewidth": 0} if hatch else {}
                axes.bar(chosen, heights, hatch=hatch, **style, **edge)
        axes.set_xlim(-0.8, len(importance) - 0.2)
        axes.set_xlabel("layer, counted from 0", loc="right")
        legend(axes)

    listed = ", ".join(str(layer) for layer in sorted(gone)) or "none"
    return svg(f"Importance of each of {len(importance)} layers; dropped: {listed}", WIDE, paint)


def panels(*wanted: tuple[str, str, Sequence[Mapping[str, Any]], Mapping[str, str], dict[str, Any]]) -> str:
    """Curves side by side: (title, unit, rows, keys, options of `curve`), those left out that have no row."""
    drawn = []
    for title, unit, rows, keys, options in wanted:
        rows = [row for row in rows if any(key in row for key in keys)]
        if rows:
            plot = curve(", ".join(filter(None, (title, unit, "by step"))), rows, keys, **options)
            drawn.append(markup.figure(title, unit, plot))
    return markup.panels(drawn)


def columns(rows: list[dict[str, Any]], table: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows with the table's numbers beside the step, and its names."""
    names = dict.fromkeys(name for row in rows for name in row.get(table, {}))
    return [{"step": row["step"], **row.get(table, {})} for row in rows], {name: name for name in names}


def curve(
    title: str,
    rows: Sequence[Mapping[str, Any]],
    keys: Mapping[str, str],
    levels: Mapping[str, float] | None = None,
    minor: bool = False,
    zero: bool = False,
    error: str = "",
) -> str:
    """Columns of the metrics against the step, where a null leaves a gap in a line.

    `keys` are columns and what their lines are called, which one alone need not be; `levels` are horizontal lines
    {role: height}; a `minor` curve is low and without colour; `zero` marks the height 0; `error` is a column that
    gives the first line a band of that width on both sides.
    """
    steps = [row["step"] for row in rows]

    def paint(axes: Axes) -> None:
        marker = "o" if len(rows) <= _MANY_POINTS else None
        style = {"linewidth": 1.5, "marker": marker, "markersize": 3}
        for i, (key, label) in enumerate(keys.items()):
            colour = COLOUR["muted" if minor else _LINES[i % len(_LINES)]]
            values = [number(row.get(key)) for row in rows]
            axes.plot(steps, values, color=colour, label=label or "distilled", **style)
        if error:
            middle, width = ([number(row.get(key)) for row in rows] for key in (next(iter(keys)), error))
            low, high = ([m + sign * w for m, w in zip(middle, width, strict=True)] for sign in (-1, 1))
            axes.fill_between(steps, low, high, color=COLOUR[_LINES[0]], alpha=0.2, linewidth=0)
        for role, height in (levels or {}).items():
            _level(axes, role, height)
        if zero:
            axes.axhline(0, color=COLOUR["muted"], linewidth=0.8)
        if levels or len(keys) > 1:
            legend(axes)
        elif not any(number(row.get(key)) < 0 for row in rows for key in keys):
            axes.set_ylim(bottom=0)
        axes.set_xlabel("step", loc="right")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}" if 0 < value < 0.01 else f"{value:g}")

    return svg(title, LOW if minor else PANEL, paint)


def ranks(points: Sequence[tuple[str, float, float]], source: float | None = None) -> str:
    """A point per candidate, best first: name, loss when pruned, loss when distilled.

    Names stand in the right margin by their rank, a line from each to its point. The source's loss is a level, unless
    it is so far off that it would take two thirds of the height.
    """
    names, across, up = zip(*points, strict=True)
    every = (*up, source) if source is not None and _range([*up, source]) <= 3 * _range(up) else up

    def paint(axes: Axes) -> None:
        margin = 0.1 * _range(every) or 0.1
        low, high = min(every) - margin, max(every) + margin
        places = spread([(height - low) / (high - low) for height in up], min(_LINE, 1 / len(up)))
        leader = {"arrowstyle": "-", "color": COLOUR["muted"], "linewidth": 0.4, "relpos": (0, 0.5)}
        for rank, (name, x, y, place) in enumerate(zip(names, across, up, places, strict=True), start=1):
            at = {"xytext": (1.02, place), "textcoords": "axes fraction", "va": "center"}
            axes.annotate(f"{rank}. {name}", (x, y), **at, color=COLOUR["ink"], arrowprops=leader)
        axes.scatter(across, up, s=22, color=COLOUR["distilled"], label="candidates", zorder=3)
        if len(every) > len(up):
            _level(axes, "source", source)
        axes.set_ylim(low, high)
        axes.xaxis.get_major_locator().set_params(integer=False, steps=STEPS)
        axes.margins(x=0.08)
        axes.set_xlabel("pruned, nats per token", loc="right")
        axes.set_ylabel("distilled, nats per token", loc="top")
        legend(axes)

    listed = "; ".join(f"rank {rank}: {name}, {x:.3f}, {y:.3f}" for rank, (name, x, y) in enumerate(points, start=1))
    title = "Held-out loss of the candidates when pruned and when distilled"
    return svg(f"{title}. {listed}", (WIDE[0], max(WIDE[1], 0.6 + 0.15 * len(points))), paint)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights in 0..1, moved up, and below 1 back down, until neighbours are `gap` apart. There must be room."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    ceiling = 1.0
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def refits(parts: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Bars of {part: rows of layer, before, after}: each layer's parts side by side, after in front of before."""
    width = 0.76 / len(parts)
    last = max(row["layer"] for rows in parts.values() for row in rows)

    def paint(axes: Axes) -> None:
        for i, (part, rows) in enumerate(parts.items()):
            name, colour = _PARTS[part]
            at = [row["layer"] + (i - (len(parts) - 1) / 2) * width for row in rows]
            for when, alpha in (("before", 0.35), ("after", 1.0)):
                style = {"color": COLOUR[colour], "alpha": alpha, "width": 0.92 * width}
                axes.bar(at, [number(row[when]) for row in rows], label=f"{name} {when}", **style)
        axes.set_xlim(-0.8, last + 0.8)
        axes.set_xlabel("layer, counted from 0", loc="right")
        legend(axes)

    listed = ", ".join(f"{_PARTS[part][0]} of {len(rows)} layers" for part, rows in parts.items())
    return svg(f"Relative squared error before and after the refit: {listed}", FLAT, paint)


def _level(axes: Axes, role: str, height: float) -> None:
    style = {"linewidth": 1.4, "dashes": _DASHES[role], "label": f"{role} {height:.3f}"}
    axes.axhline(height, color=COLOUR[role], **style)


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values)
