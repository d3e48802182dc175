"""SFT and preference optimisation: their numbers, and their part of the page and of the terminal.

What report.json has of them, each where its stage has run:

    conversations       [{name, language, conversations, tokens, trained_tokens, skipped}] of each source of SFT
    pairs               the same of preferences
    filled              {sft, dpo: share of the positions of its sequences that hold a token}
    sft, dpo            {training: [rows], validation: [rows]}
    answer_loss         {model: nats per trained token} of held-out conversations
    answer_loss_by_source, answer_loss_by_language  {model: {name: nats per trained token}}, where there are several
    preference          {model: numbers of `MEASURED`} on held-out pairs, against the reference
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from bielik_nemo.report import markup, plots, words
from bielik_nemo.report.curves import curve
from bielik_nemo.report.files import by_model, numbers_of, of_models, read, rows_of

MEASURED = {
    "likelier": "Chosen likelier<br>than rejected",
    "accuracy": "Accuracy against<br>the reference",
    "margin": "Margin",
    "chosen_log_ratio": "Chosen,<br>nats above it",
    "rejected_log_ratio": "Rejected,<br>nats above it",
    "kl": "KL from it,<br>nats per token",
}
"""What is measured of a model on pairs, and the heading of its column."""
SHARES = ("likelier", "accuracy")

_SOURCES = ("conversations", "pairs")
_COUNTS = ("tokens", "trained_tokens", "skipped")


def collect(run_dir: Path, evaluation: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The numbers; `content` is that of the stage `evaluate`'s file. Raises `DataError`."""
    batches = {stage: run_dir / stage / "batches.json" for stage in ("sft", "dpo")}
    return {
        "conversations": _sources(run_dir / "chat" / "summary.json", "conversations"),
        "pairs": _sources(run_dir / "preferences" / "summary.json", "pairs"),
        "filled": {
            stage: share
            for stage, path in batches.items()
            for share in numbers_of(path, read(path), ["filled"]).values()
        },
        "sft": curve(run_dir / "sft" / "metrics.jsonl"),
        "dpo": curve(run_dir / "dpo" / "metrics.jsonl"),
        "answer_loss": of_models(evaluation, content, "answer_loss"),
        **{
            name: by_model(evaluation, content, name)
            for name in ("answer_loss_by_source", "answer_loss_by_language", "preference")
        },
    }


def _sources(path: Path, unit: str) -> list[dict[str, Any]]:
    rows = rows_of(path, read(path), "sources")
    for index, row in enumerate(rows):
        numbers_of(path, row, (unit, *_COUNTS), f"sources[{index}].")
    return [{key: row[key] for key in ("name", "language", unit, *_COUNTS) if key in row} for row in rows]


def answers(numbers: dict[str, Any]) -> str:
    """Every model on the held-out answers and pairs, as a card of the page."""
    losses, pairs = numbers.get("answer_loss", {}), numbers.get("preference", {})
    body = ""
    if losses:
        longest = max(losses.values()) or 1.0
        rows = [[markup.model(role), f"{loss:.3f}", markup.bar(loss / longest, role)] for role, loss in losses.items()]
        body += markup.table(["Model", "Answers<br>nats per trained token", ""], ["number", "bar"], rows)
    for key, heading in (("answer_loss_by_source", "Source"), ("answer_loss_by_language", "Language")):
        body += markup.by_model(heading, numbers.get(key, {}))
    if pairs:
        told = {key: heading for key, heading in MEASURED.items() if any(key in each for each in pairs.values())}
        rows = [[markup.model(role), *(_measured(each, key) for key in told)] for role, each in pairs.items()]
        body += markup.table(["Pairs", *told.values()], ["number"] * len(told), rows)
    note = "Of conversations and pairs whose prompts no stage learned from. The reference is what DPO began with."
    return markup.section("Held-out answers", note, body) if body else ""


def training(numbers: dict[str, Any]) -> str:
    """Curves of both ways of training, and what they were trained on, as cards of the page."""
    return "\n".join(filter(None, (_sft(numbers), _dpo(numbers))))


def _sft(numbers: dict[str, Any]) -> str:
    told, measured = (numbers.get("sft", {}).get(kind, []) for kind in ("training", "validation"))
    panels = plots.panels(
        ("Loss", "nats per trained token", told, {"loss": ""}, {}),
        ("Held-out answers", "nats per trained token", measured, {"held_out_loss": ""}, {}),
        ("Held-out answers", "by source", *plots.columns(measured, "held_out_loss_by_source"), {}),
        ("Held-out answers", "by language", *plots.columns(measured, "held_out_loss_by_language"), {}),
        ("Learning rate", "", told, {"lr": ""}, {"minor": True}),
        ("Gradient norm", "", told, {"grad_norm": ""}, {"minor": True}),
    )
    return _card(numbers, "sft", "conversations", "Supervised fine-tuning", panels)


def _dpo(numbers: dict[str, Any]) -> str:
    told, measured = (numbers.get("dpo", {}).get(kind, []) for kind in ("training", "validation"))
    rewards = {"chosen_reward": "chosen", "rejected_reward": "rejected"}
    ratios = {"held_out_chosen_log_ratio": "chosen", "held_out_rejected_log_ratio": "rejected"}
    panels = plots.panels(
        ("Loss", "nats per pair", told, {"loss": ""}, {}),
        ("Held-out loss", "nats per pair", measured, {"held_out_loss": ""}, {}),
        ("Held-out loss", "by source", *plots.columns(measured, "held_out_loss_by_source"), {}),
        ("Held-out loss", "by language", *plots.columns(measured, "held_out_loss_by_language"), {}),
        ("Held-out accuracy", "share of the pairs", measured, {"held_out_accuracy": ""}, {}),
        ("Held-out margin", "of rewards", measured, {"held_out_margin": ""}, {}),
        ("Held-out answers against the reference", "nats above it", measured, ratios, {"zero": True}),
        ("Rewards", "of a batch's answers", told, rewards, {"zero": True}),
        ("Learning rate", "", told, {"lr": ""}, {"minor": True}),
    )
    return _card(numbers, "dpo", "pairs", "Preference optimisation", panels)


def _card(numbers: dict[str, Any], stage: str, unit: str, heading: str, panels: str) -> str:
    rows = [
        [
            escape(str(row.get("name", ""))),
            escape(str(row.get("language", ""))),
            *(f"{row[key]:,}" if key in row else "" for key in (unit, *_COUNTS)),
        ]
        for row in numbers.get(unit, [])
    ]
    heads = ["Source", "Language", unit.capitalize(), "Tokens", "Trained", "Lines left out"]
    table = markup.table(heads, ["text", *["number"] * 4], rows) if rows else ""
    filled = numbers.get("filled", {}).get(stage)
    note = f"{words.percent(filled)} of the positions of its sequences hold a token." if filled else ""
    return markup.section(heading, note, panels + table) if panels or table else ""


def _measured(found: dict[str, float], key: str) -> str:
    if key not in found:
        return ""
    if key == "kl":
        return f"{found[key]:.4f}"
    return words.percent(found[key]) if key in SHARES else f"{found[key]:+.3f}".replace("-", "\N{MINUS SIGN}")


def table(numbers: dict[str, Any]) -> Table | None:
    """Every model on the held-out answers and pairs, for a console."""
    losses, pairs = numbers.get("answer_loss", {}), numbers.get("preference", {})
    if not losses and not pairs:
        return None
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    found.add_column("model")
    for heading in ("answers\nnats/token", "chosen\nlikelier", "accuracy", "margin", "chosen\nvs. reference", "KL"):
        found.add_column(heading, justify="right")
    for name in words.ordered((*losses, *pairs)):
        each = pairs.get(name, {})
        told = [f"{each[key]:.1%}" if key in each else "" for key in SHARES]
        told += [f"{each[key]:+.3f}" if key in each else "" for key in ("margin", "chosen_log_ratio")]
        told += [f"{each['kl']:.4f}"] if "kl" in each else [""]
        found.add_row(Text(name), f"{losses[name]:.3f}" if name in losses else "", *told)
    return found
