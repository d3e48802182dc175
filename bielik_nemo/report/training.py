"""What is trained on the text: curves of pre-training and distillation, and what was drawn of each source."""

from __future__ import annotations

from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from bielik_nemo.errors import DataError
from bielik_nemo.report import markup, plots, words
from bielik_nemo.report.curves import curve
from bielik_nemo.report.files import needed, numbers_of, read, rows_of

TRAINED = ("adapt", "pretrain", "distill", "distill_long")
"""The stages that draw samples from the training text."""


def collect(run_dir: Path) -> dict[str, Any]:
    """The numbers. Raises `DataError`."""
    taught, distilled = run_dir / "teacher" / "manifest.json", run_dir / "distill" / "manifest.json"
    return {
        "blend": _blends(run_dir),
        "adaptation": curve(run_dir / "adapt" / "metrics.jsonl"),
        "pretraining": curve(run_dir / "pretrain" / "metrics.jsonl"),
        "curve_long": curve(run_dir / "distill_long" / "metrics.jsonl"),
        "curve": curve(run_dir / "distill" / "metrics.jsonl"),
        "teacher_cache": numbers_of(taught, read(taught).get("metrics"), ("tokens", "bytes_per_token"), "metrics."),
        "distilled_step": numbers_of(distilled, read(distilled).get("metrics"), ["step"]).get("step"),
    }


def _blends(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """What each stage that trains drew of each source."""
    found = {}
    for path in (run_dir / stage / "blend.json" for stage in TRAINED if (run_dir / stage / "blend.json").is_file()):
        rows = rows_of(path, read(path), "sources")
        for index, row in enumerate(rows):
            needed(path, row, ("share", "samples", "tokens", "epochs"), f"sources[{index}].")
            if not all(isinstance(row.get(key), str) for key in ("name", "language")):
                raise DataError(f"{path}: sources[{index}]: found {row!r:.80}, allowed: name and language as text")
        found[path.parent.name] = rows
    return found


def section(numbers: dict[str, Any]) -> str:
    """All of it as cards of the page."""
    cards = (_adaptation, _pretraining, _distillation, _longer, _texts)
    return "\n".join(filter(None, (card(numbers) for card in cards)))


def _adaptation(numbers: dict[str, Any]) -> str:
    note = (
        "The model learns the words of its new tokenizer; only what is nearest to them is trained, the rest is frozen."
    )
    return _phase("Adaptation to the tokenizer", note, numbers.get("adaptation", {}), "Cross-entropy while it adapts")


def _pretraining(numbers: dict[str, Any]) -> str:
    note = "The source was trained further before it was scored, cut and taught; it is this model that is compared."
    return _phase("Continued pre-training", note, numbers.get("pretraining", {}), "Cross-entropy of the source")


def _longer(numbers: dict[str, Any]) -> str:
    note = "The student goes on at another length, where also the held-out loss is another."
    return _phase("Distillation at a longer context", note, numbers.get("curve_long", {}), "Loss at a longer context")


def _phase(heading: str, note: str, curves: dict[str, list], loss: str) -> str:
    """Loss and held-out loss of a phase that is not the first distillation."""
    panels = plots.panels(
        (loss, "nats per token", curves.get("training", []), {"loss": ""}, {}),
        (f"{loss}, held-out text", "nats per token", curves.get("validation", []), {"held_out_loss": ""}, {}),
    )
    return markup.section(heading, note, panels) if panels else ""


def _distillation(numbers: dict[str, Any]) -> str:
    training, validation = (numbers.get("curve", {}).get(kind, []) for kind in ("training", "validation"))
    losses = numbers.get("held_out_loss", {})
    levels = {role: losses[role] for role in ("pruned", "source") if role in losses}
    nats = "nats per token"
    panels = plots.panels(
        (_KL if _only_kl(training) else "Loss, of weighted parts", nats, training, {"loss": ""}, {}),
        ("Held-out loss", nats, validation, {"held_out_loss": ""}, {"levels": levels}),
        ("Agreement", "with the teacher on the likeliest token", training, {"agreement": ""}, {"minor": True}),
        ("Tokens per second", "", training, {"tokens_per_second": ""}, {"minor": True}),
        ("Learning rate", "", training, {"lr": ""}, {"minor": True}),
        ("Gradient norm", "", training, {"grad_norm": ""}, {"minor": True}),
    )
    if not panels:
        return ""
    last = (training or validation)[-1]
    facts = [f"{last['step']:,} steps"]
    facts += [f"{last['tokens']:,} tokens"] if last.get("tokens") else []
    rates = [row["tokens_per_second"] for row in training if row.get("tokens_per_second")]
    facts += [f"{median(rates):,.0f} tokens per second (median)"] if rates else []
    used = [row["mfu"] for row in training if row.get("mfu")]
    facts += [f"{words.percent(median(used))} of the GPUs' peak (median)"] if used else []
    result = numbers.get("distilled_step", last["step"])
    facts += [f"the result is the student of step {result:,}"] if result != last["step"] else []
    return markup.section("Distillation", ", ".join(facts) + ".", panels)


def _texts(numbers: dict[str, Any]) -> str:
    """What each stage that trains drew of each source."""
    blends = numbers.get("blend", {})
    rows = [
        [
            escape(row["name"]),
            escape(row["language"]),
            escape(stage),
            f"{row['tokens']:,}",
            f"{row['epochs']:.2f}",
            words.percent(row["share"]),
            markup.bar(row["share"]),
        ]
        for stage, sources in blends.items()
        for row in sources
    ]
    if not rows:
        return ""
    heads = ["Source", "Language", "Stage", "Tokens drawn", "Epochs", "Share", ""]
    note = "What training drew of each source. Text that is repeated for more than four epochs teaches little."
    return markup.section("Training text", note, markup.table(heads, ["text", "text", *["number"] * 3, "bar"], rows))


_KL = "KL divergence from the teacher"


def _only_kl(training: list[dict[str, Any]]) -> bool:
    """Whether the loss is the KL divergence alone: where agreement is told, so are all parts by name."""
    parts = [(row["loss"], row.get("kl")) for row in training if "agreement" in row and row["loss"] is not None]
    return all(kl is not None and abs(kl - loss) <= 1e-5 * abs(loss) for loss, kl in parts)
