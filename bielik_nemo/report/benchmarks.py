"""Benchmarks of lm-evaluation-harness: scores, what was kept of the source's, and the best and worst kept abilities.

What report.json has of them is what the stage `evaluate` left, checked, where it ran any:

    benchmarks    {teacher, confidence, tasks: {task: {metric, samples, shots, group, models: {model: {value, low,
                  high}}, recovery: {model: {value, low, high, verdict, reason}}, above_chance: {model: score}}},
                  mean: {model: {value, low, high, verdict}}, groups: {group: the same of its tasks}}

A verdict is `lost`, `gained` or `within noise`: 1 lies in the interval. Without one there is a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from bielik_nemo.errors import DataError
from bielik_nemo.report import charts, markup, words
from bielik_nemo.report.files import numbers_of, texts_of

VERDICTS = {"gained": "good", "within noise": "", "lost": "bad"}
_EXTREMES = 5
"""Tasks at each end of the terminal's table."""


def collect(evaluation: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The numbers; `content` is that of the stage `evaluate`'s file. Raises `DataError`."""
    found = content.get("benchmarks") or {}
    tasks = _object(evaluation, found, "benchmarks").get("tasks") or {}
    for name, task in _object(evaluation, tasks, "benchmarks.tasks").items():
        where = f"benchmarks.tasks.{name}"
        numbers_of(evaluation, _object(evaluation, task, where), ("samples", "shots"), f"{where}.")
        texts_of(evaluation, task, ("metric", "group"), f"{where}.")
        for part in ("models", "recovery"):
            _scores(evaluation, task.get(part) or {}, f"{where}.{part}")
        above = task.get("above_chance") or {}
        numbers_of(evaluation, above, _object(evaluation, above, f"{where}.above_chance"), f"{where}.above_chance.")
    _scores(evaluation, found.get("mean") or {}, "benchmarks.mean")
    for name, means in _object(evaluation, found.get("groups") or {}, "benchmarks.groups").items():
        _scores(evaluation, means, f"benchmarks.groups.{name}")
    numbers_of(evaluation, found, ["confidence"], "benchmarks.")
    texts_of(evaluation, found, ["teacher"], "benchmarks.")
    return {"benchmarks": found}


def _scores(path: Path, table: Any, where: str) -> None:
    for name, each in _object(path, table, where).items():
        prefix = f"{where}.{name}"
        numbers_of(path, _object(path, each, prefix), ("value", "low", "high"), f"{prefix}.")
        texts_of(path, each, ["reason"], f"{prefix}.")
        if each.get("verdict") not in (None, *VERDICTS):
            raise DataError(f"{path}: {prefix}.verdict: found {each['verdict']!r:.80}, allowed: {', '.join(VERDICTS)}")


def _object(path: Path, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{path}: {where}: found {value!r:.80}, allowed: an object")
    return value


def retention(found: Mapping[str, Any], model: str) -> list[dict[str, Any]]:
    """Tasks with a recovery of this model, best kept first: name, value, low, high, verdict, and both scores."""
    rows = []
    for name, task in found.get("tasks", {}).items():
        each = (task.get("recovery") or {}).get(model) or {}
        if each.get("value") is not None and each.get("verdict"):
            bounds = {key: each["value"] if each.get(key) is None else each[key] for key in ("low", "high")}
            scores = {who: (task["models"].get(who) or {}).get("value") for who in (found.get("teacher"), model)}
            rows.append({"name": name, **each, **bounds, "scores": scores})
    return sorted(rows, key=lambda row: -row["value"])


def unknown(found: Mapping[str, Any], model: str) -> dict[str, str]:
    """Why there is no recovery of this model, by task."""
    every = {name: (task.get("recovery") or {}).get(model) or {} for name, task in found.get("tasks", {}).items()}
    return {name: each["reason"] for name, each in every.items() if each.get("reason")}


def measured(found: Mapping[str, Any]) -> list[str]:
    """The models that are compared with the teacher."""
    return words.ordered(model for task in found.get("tasks", {}).values() for model in task.get("recovery") or {})


def newest(found: Mapping[str, Any]) -> str:
    """The model whose retention is told first: the last that the pipeline made, or else the first other; "": none."""
    models = measured(found)
    return next((name for name in reversed(models) if name in words.ROLES), models[0] if models else "")


def section(numbers: dict[str, Any]) -> str:
    """Scores and retention as cards of the page."""
    found = numbers.get("benchmarks", {})
    return "\n".join(filter(None, (_retention(found), _tasks(found)))) if found.get("tasks") else ""


def _retention(found: dict[str, Any]) -> str:
    model = newest(found)
    rows, reasons = retention(found, model), unknown(found, model)
    if not rows and not reasons:
        return ""
    share = f"{100 * found['confidence']:g} % " if found.get("confidence") else ""
    note = (
        f"Score over the {escape(found.get('teacher', 'source'))}'s, on the same documents, with its {share}interval."
    )
    mean = found.get("mean", {}).get(model, {})
    if mean.get("value") is not None:
        note += f" On average <b>{spelt(mean)}</b> {_badge(mean)}"
    heads = ["Ability", words.model(found.get("teacher", "source")), escape(words.model(model)), "Kept", ""]
    lines = [
        [escape(row["name"]), *(_score(value) for value in row["scores"].values()), spelt(row), _badge(row)]
        for row in rows
    ]
    body = ""
    if rows:
        plot = charts.recoveries(rows, f"Kept by {words.model(model)}, best first")
        body = markup.figure("", "", plot, wide=True) + markup.table(heads, ["number"] * 3 + ["text"], lines)
    body += "".join(f"<p>{escape(name)}: {escape(reason)}</p>" for name, reason in reasons.items())
    return markup.section(f"What {escape(words.model(model))} kept, best first", note, body)


def _tasks(found: dict[str, Any]) -> str:
    tasks = found["tasks"]
    models = words.ordered(model for task in tasks.values() for model in task.get("models") or {})
    rows = []
    for name, task in tasks.items():
        rows.append([_named(name, task), *(_interval((task.get("models") or {}).get(model) or {}) for model in models)])
        if above := task.get("above_chance"):
            rows.append(["<small>the same above chance</small>", *(_score(above.get(model)) for model in models)])
    for group, kept in (found.get("groups") or {}).items():
        rows.append([f"Kept of {escape(group)}", *(_kept(kept.get(model) or {}) for model in models)])
    means = found.get("mean") or {}
    foot = ["Kept, on average", *(_kept(means.get(model) or {}) for model in models)] if means else None
    heads = ["Task", *map(markup.model, models)]
    note = "By lm-evaluation-harness, all models on the same documents; below each score its interval."
    return markup.section("Benchmarks", note, markup.table(heads, ["number"] * len(models), rows, foot))


def _badge(each: Mapping[str, Any]) -> str:
    return markup.verdict(each["verdict"], VERDICTS[each["verdict"]]) if each.get("verdict") else ""


def spelt(each: Mapping[str, Any]) -> str:
    """97.3 % (95.1 to 99.5)."""
    if each.get("value") is None:
        return ""
    known = each.get("low") is not None and each.get("high") is not None
    bounds = f" ({100 * each['low']:.1f} to {100 * each['high']:.1f})" if known else ""
    return words.percent(each["value"]) + bounds


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _kept(each: Mapping[str, Any]) -> str:
    return "" if each.get("value") is None else words.percent(each["value"])


def _interval(each: Mapping[str, Any]) -> str:
    known = each.get("low") is not None and each.get("high") is not None
    return _score(each.get("value")) + (f"<br><small>{each['low']:.3f} to {each['high']:.3f}</small>" if known else "")


def _named(name: str, task: Mapping[str, Any]) -> str:
    """Its name above its metric, shots and number of documents."""
    facts = [escape(task[key]) for key in ("group", "metric") if task.get(key)]
    facts += [f"{task['shots']:,} shots"] if task.get("shots") is not None else []
    facts += [f"{task['samples']:,} documents"] if task.get("samples") is not None else []
    return f"{escape(name)}<br><small>{', '.join(facts)}</small>"


def table(numbers: dict[str, Any]) -> Table | None:
    """The best and the worst kept abilities of the newest model, for a console."""
    found = numbers.get("benchmarks", {})
    model = newest(found)
    rows = retention(found, model)
    if not rows:
        return None
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown.add_column(Text(f"kept by {model}"))
    for heading in (found.get("teacher", "source"), model, "kept", ""):
        shown.add_column(Text(heading), justify="right", no_wrap=True)
    ends = rows if len(rows) <= 2 * _EXTREMES else [*rows[:_EXTREMES], None, *rows[-_EXTREMES:]]
    for row in ends:
        if row is None:
            shown.add_row("...")
            continue
        scores = [_score(value) for value in row["scores"].values()]
        shown.add_row(Text(row["name"], overflow="ellipsis"), *scores, spelt(row), row["verdict"])
    mean = found.get("mean", {}).get(model) or {}
    if mean.get("value") is not None:
        shown.add_row("on average", "", "", spelt(mean), mean.get("verdict") or "")
    return shown
