"""Quality of all models side by side, stage by stage: its numbers, and its part of the page and of the terminal.

What report.json has of it, each where it was measured:

    held_out_loss       {model: nats per token}, over held_out_tokens tokens; a model is one of `words.ROLES` or another
    held_out_loss_by_language, held_out_loss_by_source  {model: {name: nats per token}}, where there are several
    perplexity          {model: perplexity}
    bits_per_byte       {model: bits per byte of UTF-8}; bits_per_byte_by_language, bits_per_byte_by_source likewise
    agreement           {model: {kl: nats per token, top1: share of the tokens, tokens}} with the source
    gap_closed          see `gap_closed`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from bielik_nemo.report import charts, markup, words
from bielik_nemo.report.files import by_model, numbers_of, of_models

BY_PART = (
    ("held_out_loss_by_language", "Language"),
    ("held_out_loss_by_source", "Source"),
    ("bits_per_byte_by_language", "Bits per byte, language"),
    ("bits_per_byte_by_source", "Bits per byte, source"),
)
"""Tables of a part of the held-out text, and how their first column is headed."""


@dataclass(frozen=True)
class Measure:
    """One number of every model.

    Attributes:
        name: what it is called.
        unit: of its values.
        better: which is the better side: less or more.
        values: {model: value}.
        spell: how a value is written.
        bounds: {model: (low, high)} of those that have an interval.
        share: whether values are shares, 0..1 as a rule.
    """

    name: str
    unit: str
    better: str
    values: Mapping[str, float]
    spell: Callable[[float], str]
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    share: bool = False


def collect(evaluation: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The numbers; `content` is that of the stage `evaluate`'s file. Raises `DataError`."""
    losses = of_models(evaluation, content, "held_out_loss")
    return {
        "held_out_loss": losses,
        "perplexity": of_models(evaluation, content, "perplexity"),
        "bits_per_byte": of_models(evaluation, content, "bits_per_byte"),
        "agreement": by_model(evaluation, content, "agreement"),
        **{key: by_model(evaluation, content, key) for key, _ in BY_PART},
        "held_out_tokens": numbers_of(evaluation, content, ["tokens"]).get("tokens"),
        "gap_closed": gap_closed(losses),
    }


def gap_closed(loss: dict[str, float]) -> float | None:
    """(pruned - distilled) / (pruned - source): 0 is no better than pruned, 1 as good as the source.

    Not clipped: negative says that distillation did harm, more than 1 that the student beats its teacher.
    None when a value is missing, or when pruning cost nothing and there is no gap.
    """
    if not loss.keys() >= set(words.COMPRESSED) or loss["pruned"] <= loss["source"]:
        return None
    return (loss["pruned"] - loss["distilled"]) / (loss["pruned"] - loss["source"])


def measures(numbers: dict[str, Any]) -> list[Measure]:
    """All that was measured of at least one model, in the order in which it is told."""

    def part(table: str, key: str) -> dict[str, float]:
        found = numbers.get(table, {})
        return {name: found[name][key] for name in words.ordered(found) if found[name].get(key) is not None}

    rewards, errors = part("rewards", "reward"), part("rewards", "reward_se")
    kept = {name: each for name, each in numbers.get("benchmarks", {}).get("mean", {}).items() if "value" in each}
    nats = "{:.3f}".format
    every = [
        Measure("Held-out loss", "nats per token", "less", numbers.get("held_out_loss", {}), nats),
        Measure("Perplexity", "", "less", numbers.get("perplexity", {}), words.perplexity),
        Measure("Bits per byte", "", "less", numbers.get("bits_per_byte", {}), nats),
        Measure("KL from the source", "nats per token", "less", part("agreement", "kl"), "{:.4f}".format),
        Measure("Top-1 agreement", "with the source", "more", part("agreement", "top1"), words.percent, share=True),
        Measure("Answers", "nats per trained token", "less", numbers.get("answer_loss", {}), nats),
        Measure("Pairs", "chosen answer likelier", "more", part("preference", "likelier"), words.percent, share=True),
        Measure(
            "Tasks",
            "mean reward",
            "more",
            rewards,
            nats,
            {name: (rewards[name] - errors[name], rewards[name] + errors[name]) for name in errors if name in rewards},
        ),
        Measure(
            "Benchmarks",
            "kept of the source's, mean",
            "more",
            {name: kept[name]["value"] for name in words.ordered(kept)},
            words.percent,
            {name: (each["low"], each["high"]) for name, each in kept.items() if {"low", "high"} <= each.keys()},
            share=True,
        ),
    ]
    return [measure for measure in every if measure.values]


def by_stage(numbers: dict[str, Any]) -> str:
    """Everything of every model in one table, and drawn, as a card of the page; empty where there is but one thing."""
    every = measures(numbers)
    names = words.ordered(name for measure in every for name in measure.values)
    drawn = [measure for measure in every if measure.name != "Perplexity"]  # which says what the loss says
    if len(names) < 2 or len(drawn) < 2:
        return ""
    rows = [
        [_named(measure), *(measure.spell(measure.values[n]) if n in measure.values else "" for n in names)]
        for measure in every
    ]
    figures = [
        markup.figure(m.name, ", ".join(filter(None, (m.unit, f"{m.better} is better"))), _drawn(m))
        for m in drawn
        if len(m.values) > 1
    ]
    note = "Every model of the run, and those it is compared with, on what no stage learned from."
    body = markup.table(["", *map(markup.model, names)], ["number"] * len(names), rows)
    return markup.section("Quality by stage", note, body + markup.panels(figures))


def _named(measure: Measure) -> str:
    return measure.name + (f"<br><small>{measure.unit}</small>" if measure.unit else "")


def _drawn(measure: Measure) -> str:
    return charts.by_stage(measure.name, measure.values, measure.bounds, measure.share)


def section(numbers: dict[str, Any]) -> str:
    """The held-out text in detail, as a card of the page."""
    losses, perplexities = numbers.get("held_out_loss", {}), numbers.get("perplexity", {})
    bits = numbers.get("bits_per_byte", {})
    if not losses:
        return ""
    longest = max(losses.values()) or 1.0
    rows = [
        [
            markup.model(name),
            f"{loss:.3f}",
            markup.bar(loss / longest, name),
            words.perplexity(perplexities[name]) if name in perplexities else "",
            *([f"{bits[name]:.3f}" if name in bits else ""] if bits else []),
        ]
        for name, loss in losses.items()
    ]
    tokens = f" over {numbers['held_out_tokens']:,} tokens" if "held_out_tokens" in numbers else ""
    note = f"Mean cross-entropy{tokens} of text that no stage learned from. Less is better."
    heads = ["Model", "Loss<br>nats per token", "", "Perplexity", *(["Bits<br>per byte"] if bits else [])]
    body = markup.table(heads, ["number", "bar", *["number"] * len(heads[3:])], rows)
    body += "".join(markup.by_model(heading, numbers.get(key, {})) for key, heading in BY_PART)
    return markup.section("Held-out loss", note, body)


def table(numbers: dict[str, Any]) -> Table | None:
    """Size, loss and agreement of every model, for a console."""
    both = words.counts_differ(numbers)
    losses, perplexities = numbers.get("held_out_loss", {}), numbers.get("perplexity", {})
    bits = numbers.get("bits_per_byte", {})  # 80 columns do not hold both
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    found.add_column("model")
    sizes = ["parameters", "embeddings\nonce"][: 1 + both]
    for heading in (*sizes, "held-out loss\nnats/token", "bits\nper byte" if bits else "perplexity", "gap closed"):
        found.add_column(heading, justify="right")
    for name in words.ordered(("source", "pruned", *losses, *bits)):
        if name not in losses and name not in bits and not words.size(numbers, name):
            continue
        sizes = [words.size(numbers, name, once) for once in (False, True)[: 1 + both]]
        perplexity = words.perplexity(perplexities[name]) if name in perplexities and not bits else ""
        found.add_row(
            Text(name),
            *[words.count(number) if number else "" for number in sizes],
            f"{losses[name]:.3f}" if name in losses else "",
            f"{bits[name]:.3f}" if name in bits else perplexity,
            words.percent(numbers["gap_closed"]) if name == "distilled" and "gap_closed" in numbers else "",
        )
    return found if found.row_count else None
