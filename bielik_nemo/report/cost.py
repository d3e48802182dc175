"""What a run cost: its numbers, and its part of the page and of the terminal.

What report.json has of it:

    seconds    {stage: wall time}
    cost       {stages: {stage: {seconds, gpus, gpu_hours, price}}, gpu_hours, price, currency} where stages held GPUs;
               the price in all where each of these knew `cluster.price_per_gpu_hour`
    packages   {name: version; several, comma-separated, when the stages saw different ones}
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from bielik_nemo.errors import DataError
from bielik_nemo.report import markup, words
from bielik_nemo.report.files import numbers_of, read, texts_of

# The order in which stages are told; any other follows by name.
STAGES = (
    "import_hf",
    "tokenizers",
    "swap_tokenizer",
    "data",
    "adapt",
    "pretrain",
    "score",
    "search",
    "prune",
    "teacher",
)
STAGES += ("distill", "distill_long", "chat", "sft", "preferences", "reference", "dpo", "tasks", "grpo", "merge")
STAGES += ("export", "evaluate", "benchmark", "quantize", "release")


def manifests(run_dir: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Path and content of each finished stage's manifest, in the order of the pipeline. Raises `DataError`."""

    def order(path: Path) -> tuple[int, str]:
        stage = path.parent.name
        return (STAGES.index(stage) if stage in STAGES else len(STAGES), stage)

    return {path.parent.name: (path, read(path)) for path in sorted(run_dir.glob("*/manifest.json"), key=order)}


def collect(run_dir: Path) -> dict[str, Any]:
    """The numbers. Raises `DataError`."""
    stages: dict[str, dict[str, float]] = {}
    versions: dict[str, dict[str, None]] = {}
    currencies: dict[str, None] = {}
    for name, (path, manifest) in manifests(run_dir).items():
        found = numbers_of(path, manifest, ("seconds", "gpus"))
        rate = numbers_of(path, manifest.get("price"), ("per_gpu_hour",), "price.").get("per_gpu_hour")
        if "seconds" in found:
            stages[name] = {"seconds": found["seconds"]}
        if "seconds" in found and found.get("gpus"):
            hours = found["gpus"] * found["seconds"] / 3600
            stages[name] |= {"gpus": found["gpus"], "gpu_hours": hours} | ({"price": rate * hours} if rate else {})
            currencies |= dict.fromkeys(texts_of(path, manifest.get("price") or {}, ["currency"], "price.").values())
        packages = manifest.get("packages", {})
        if not isinstance(packages, dict):
            raise DataError(f"{path}: packages: found {packages!r:.80}, allowed: an object")
        for package, version in packages.items():
            versions.setdefault(package, {})[str(version)] = None
    held = [each for each in stages.values() if "gpu_hours" in each]
    total: dict[str, Any] = {"gpu_hours": sum(each["gpu_hours"] for each in held)} if held else {}
    if held and all("price" in each for each in held) and len(currencies) == 1:
        total |= {"price": sum(each["price"] for each in held), "currency": next(iter(currencies))}
    return {
        "seconds": {name: each["seconds"] for name, each in stages.items()},
        "cost": {"stages": stages, **total} if held else {},
        "packages": {name: ", ".join(versions[name]) for name in sorted(versions)},
    }


def section(numbers: dict[str, Any]) -> str:
    """Time of each stage, and what it took of GPUs and money, as a card of the page."""
    seconds, cost = numbers.get("seconds", {}), numbers.get("cost", {})
    total = sum(seconds.values())
    if not total:
        return ""
    longest = max(seconds.values())
    rows = []
    for stage, value in seconds.items():
        cells = [escape(stage), words.duration(value), *_spent(cost.get("stages", {}).get(stage, {}), cost)]
        rows.append([*cells, words.percent(value / total), markup.bar(value / longest)])
    more = [
        name for key, name in (("gpu_hours", "GPU-hours"), ("price", escape(cost.get("currency", "")))) if key in cost
    ]
    foot = ["Total", words.duration(total), *_spent(cost, cost), "", ""]
    kinds = ["number"] * (2 + len(more)) + ["bar"]
    return markup.section("Cost", "", markup.table(["Stage", "Time", *more, "Share of time", ""], kinds, rows, foot))


def _spent(found: dict[str, Any], cost: dict[str, Any]) -> list[str]:
    return [f"{found[key]:,.2f}" if key in found else "" for key in ("gpu_hours", "price") if key in cost]


def table(numbers: dict[str, Any]) -> Table | None:
    """The same for a console."""
    seconds, cost = numbers.get("seconds", {}), numbers.get("cost", {})
    if not seconds:
        return None
    total = sum(seconds.values())
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    found.add_column("stage", "total")
    found.add_column("seconds", f"{total:,.1f}", justify="right")
    found.add_column("time", words.duration(total), justify="right")
    more = [name for key, name in (("gpu_hours", "GPU-hours"), ("price", cost.get("currency", ""))) if key in cost]
    for heading, all_of_it in zip(more, _spent(cost, cost), strict=True):
        found.add_column(Text(heading), all_of_it, justify="right")
    for stage, value in seconds.items():
        spent = _spent(cost.get("stages", {}).get(stage, {}), cost)
        found.add_row(Text(stage), f"{value:,.1f}", words.duration(value), *spent)
    return found
