"""The report's plots that compare: shapes, models stage by stage, recoveries, speeds, sizes (see canvas.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bielik_nemo.report import markup, words
from bielik_nemo.report.canvas import COLOUR, PANEL, STEPS, WIDE, legend, number, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHORT = 11
"""Characters of a model's name below a point."""
_VERDICTS = {"gained": ("distilled", "^"), "within noise": ("muted", "o"), "lost": ("pruned", "v")}
"""Colour and marker, so that no meaning is in colour alone."""
_COLUMN = 0.86
"""Width of a layer's column, of which there is one for each unit."""
_ROW = 0.19
"""Inches that a row of a plot takes whose rows are named."""


def anatomy(source: Mapping[str, Any], target: Mapping[str, Any], dropped: Sequence[int]) -> str:
    """Both shapes (fields of `Architecture`) with areas that are numbers of parameters, kept layers below their own.

    A column is a layer, its FFN under its attention. Where the dropped layers do not explain the target's depth, its
    columns stand side by side.
    """
    depth, gone = source["num_layers"], sorted(set(dropped))
    kept = [layer for layer in range(depth) if layer not in gone]
    places = kept if len(kept) == target["num_layers"] else range(target["num_layers"])
    tallest = max(sum(_parts(shape)[:2]) for shape in (source, target))

    def paint(axes: Axes) -> None:
        _layers(axes, source, kept, 1.3 * tallest, ("FFN", "attention"), "distilled", "source")
        _layers(axes, source, gone, 1.3 * tallest, ("dropped", None), "line", "line")
        _layers(axes, target, places, 0.0, (None, None), "distilled", "source")
        for shape, base, said in ((source, 1.3 * tallest, "before"), (target, 0.0, "after")):
            attention, ffn, embedding = _parts(shape)
            height, width = attention + ffn, _COLUMN * embedding / (attention + ffn)
            sides = [-1.2 - width] if shape["tie_embeddings"] else [-1.2 - width, depth + 0.2]
            style = {"bottom": base, "align": "edge", "color": COLOUR["muted"], "linewidth": 0}
            label = "embeddings" if shape is source else None
            axes.bar(sides, [height] * len(sides), width=width, label=label, **style)
            said += f": {shape['num_layers']} layers of {words.count(height)} parameters"
            axes.text(-0.43, base + 1.04 * height, said, color=COLOUR["ink"], va="bottom")
        axes.set_ylim(0, 2.55 * tallest)
        axes.spines["bottom"].set_visible(False)
        axes.set_yticks([])
        axes.xaxis.set_major_formatter(lambda layer, _: f"{layer:g}" if 0 <= layer < depth else "")
        axes.set_xlabel("layer of the source, counted from 0", loc="right")
        legend(axes)

    return svg(f"The shape before and after, with {depth} and {target['num_layers']} layers", WIDE, paint)


def _layers(
    axes: Axes,
    shape: Mapping[str, Any],
    at: Sequence[int],
    base: float,
    labels: tuple[str | None, str | None],
    *colours: str,
) -> None:
    """A column for each layer `at` a place: its FFN, and its attention on top."""
    attention, ffn, _ = _parts(shape)
    for height, bottom, label, colour in zip((ffn, attention), (base, base + ffn), labels, colours, strict=True):
        axes.bar(
            at, [height] * len(at), width=_COLUMN, bottom=bottom, color=COLOUR[colour], label=label if at else None
        )


def _parts(shape: Mapping[str, Any]) -> tuple[int, int, int]:
    """Parameters of a layer's attention, of its FFN, and of one embedding matrix; norms and biases left out."""
    hidden, heads = shape["hidden_size"], 2 * shape["num_attention_heads"] + 2 * shape["num_query_groups"]
    return hidden * heads * shape["head_dim"], 3 * hidden * shape["ffn_hidden_size"], hidden * shape["vocab_size"]


def by_stage(
    title: str, values: Mapping[str, float], bounds: Mapping[str, Sequence[float]], as_percent: bool = False
) -> str:
    """A point for each model, those of the pipeline joined in the order in which they came to be.

    `values` are {model: value}, in `words.ordered`'s order; `bounds` {model: (low, high)} of those that have an
    interval.
    """
    own = [i for i, name in enumerate(values) if name in words.ROLES]
    scale = 100 if as_percent else 1

    def paint(axes: Axes) -> None:
        heights = [scale * value for value in values.values()]
        axes.plot(own, [heights[i] for i in own], color=COLOUR["line"], linewidth=2.5, zorder=1)
        for i, (name, height) in enumerate(zip(values, heights, strict=True)):
            colour = COLOUR[markup.colour(name)]
            if name in bounds:
                low, high = (scale * bound for bound in bounds[name])
                axes.plot([i, i], [low, high], color=colour, linewidth=1.5, zorder=2)
            axes.scatter([i], [height], s=26, color=colour, zorder=3)
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.05 * (high - low), high + 0.1 * (high - low))
        labels = [words.model(name) for name in values]
        labels = [label if len(label) <= _SHORT else f"{label[: _SHORT - 1]}…" for label in labels]
        axes.set_xticks(range(len(values)), labels, rotation=25 if len(values) > 6 else 0)
        axes.set_xlim(-0.4, len(values) - 0.6)
        if as_percent:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")

    listed = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    return svg(f"{title} by model: {listed}", PANEL, paint)


def recoveries(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """Recovery of each task with its interval: rows of name, value, low, high, verdict, in their order from above."""

    def paint(axes: Axes) -> None:
        _named_rows(axes, [row["name"] for row in rows])
        axes.axvline(100, color=COLOUR["ink"], linewidth=0.9)
        for verdict, (colour, marker) in _VERDICTS.items():
            chosen = [i for i, row in enumerate(rows) if row["verdict"] == verdict]
            for i in chosen:
                axes.plot([100 * rows[i]["low"], 100 * rows[i]["high"]], [i, i], color=COLOUR[colour], linewidth=1.6)
            if chosen:
                points = [100 * rows[i]["value"] for i in chosen]
                style = {"s": 24, "zorder": 3, "label": f"{verdict} ({len(chosen)})"}
                axes.scatter(points, chosen, color=COLOUR[colour], marker=marker, **style)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
        axes.set_xlabel("of the source's score", loc="right")
        legend(axes)

    listed = "; ".join(f"{row['name']} {words.percent(row['value'])}, {row['verdict']}" for row in rows)
    return svg(f"{title}: {listed}", _height(len(rows)), paint)


def against_limit(rows: Sequence[tuple[str, str, float, float | None]], unit: str, title: str) -> str:
    """Bars of (name of the row, model, measured, limit), with a mark where the limit of each is."""

    def paint(axes: Axes) -> None:
        _named_rows(axes, [name for name, *_ in rows])
        for i, (_, model, measured, _) in enumerate(rows):
            axes.barh([i], [measured], height=0.62, color=COLOUR[markup.colour(model)])
        limits = {i: limit for i, (*_, limit) in enumerate(rows) if limit is not None}
        if limits:
            ends = [i - 0.42 for i in limits], [i + 0.42 for i in limits]
            style = {"color": COLOUR["ink"], "linewidth": 1.6, "label": "limit by memory bandwidth"}
            axes.vlines(list(limits.values()), *ends, **style)
            legend(axes)
        axes.set_xlim(left=0)
        axes.set_xlabel(unit, loc="right")

    listed = "; ".join(
        f"{name} {measured:.4g}" + (f" of {limit:.4g}" if limit else "") for name, _, measured, limit in rows
    )
    return svg(f"{title}: {listed}", _height(len(rows)), paint)


def sizes(points: Sequence[tuple[str, float, float | None]]) -> str:
    """A point for each format: name, GB, and by how much of it the loss changed (a share)."""

    def paint(axes: Axes) -> None:
        for name, size, change in points:
            axes.scatter([size], [100 * number(change)], s=26, color=COLOUR["distilled"], zorder=3)
            axes.annotate(name, (size, 100 * number(change)), xytext=(5, 4), textcoords="offset points",
                          color=COLOUR["ink"])  # fmt: skip
        axes.axhline(0, color=COLOUR["muted"], linewidth=0.8)
        axes.xaxis.get_major_locator().set_params(integer=False, steps=STEPS)
        axes.margins(x=0.14, y=0.2)
        axes.set_xlim(left=0)
        axes.set_xlabel("GB", loc="right")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:+g} %")

    listed = "; ".join(f"{name} {size:.3g} GB" for name, size, _ in points)
    return svg(f"Change of the loss by size: {listed}", WIDE, paint)


def bars(rows: Mapping[str, Mapping[str, float]], title: str, unit: str) -> str:
    """Bars of {group: {name: value}}: each group's names side by side, one colour for each name."""
    names = list(dict.fromkeys(name for each in rows.values() for name in each))
    colours = ("source", "distilled", "pruned", "sft", "dpo", "grpo", "merged", "other")

    def paint(axes: Axes) -> None:
        width = 0.8 / len(names)
        for i, name in enumerate(names):
            at = [g + (i - (len(names) - 1) / 2) * width for g, each in enumerate(rows.values()) if name in each]
            heights = [each[name] for each in rows.values() if name in each]
            axes.bar(at, heights, width=0.9 * width, color=COLOUR[colours[i % len(colours)]], label=name)
        axes.set_xticks(range(len(rows)), list(rows))
        axes.set_ylabel(unit, loc="top")
        legend(axes)

    return svg(f"{title}: {', '.join(names)}, by {', '.join(rows)}", WIDE, paint)


def _named_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelcolor=COLOUR["ink"])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=COLOUR["line"], linewidth=0.8)
    axes.xaxis.get_major_locator().set_params(integer=False, steps=STEPS)


def _height(rows: int) -> tuple[float, float]:
    return WIDE[0], 0.65 + _ROW * rows
