"""Reinforcement learning: its numbers, and its part of the page and of the terminal.

What report.json has of it, each where its stage has run:

    tasks               [{name, language, tasks, tokens, skipped}] of each source
    grpo                {training: [rows], validation: [rows]}
    rewards             {model: numbers of `MEASURED` and `reward_se`} on held-out tasks
    answers             [{prompt, answer, verdict, value, tokens, parts}], some of the last rollout
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from bielik_nemo.errors import DataError
from bielik_nemo.report import markup, plots, words
from bielik_nemo.report.curves import curve
from bielik_nemo.report.files import by_model, numbers_of, parse, read, rows_of

MEASURED = {
    "reward": "Reward",
    "correct": "Correct",
    "unverifiable": "Cannot be<br>verified",
    "answer_tokens": "Tokens of<br>an answer",
    "wrong_tokens": "Tokens of<br>a wrong one",
    "cut": "Cut at the<br>longest length",
}
"""What is measured of a model on tasks, and the heading of its column."""
SHARES = ("correct", "unverifiable", "cut")

_COUNTS = ("tasks", "tokens", "skipped")
_VERDICTS = {"correct": "good", "wrong": "bad", "unverifiable": ""}
_SHOWN, _LONGEST = 2, 2000
"""Answers of each verdict, and characters of a text."""


def collect(run_dir: Path, evaluation: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The numbers; `content` is that of the stage `evaluate`'s file. Raises `DataError`."""
    measured = by_model(evaluation, content, "tasks")
    return {
        "tasks": _sources(run_dir / "tasks" / "summary.json"),
        "grpo": curve(run_dir / "grpo" / "metrics.jsonl"),
        "rewards": measured,
        "answers": _answers(run_dir / "grpo" / "rollouts"),
    }


def _sources(path: Path) -> list[dict[str, Any]]:
    rows = rows_of(path, read(path), "sources")
    for index, row in enumerate(rows):
        numbers_of(path, row, _COUNTS, f"sources[{index}].")
    return [{key: row[key] for key in ("name", "language", *_COUNTS) if key in row} for row in rows]


def _answers(rollouts: Path) -> list[dict[str, Any]]:
    """The first answers of each verdict in the last rollout."""
    paths = sorted(rollouts.glob("*.jsonl"))
    found: dict[str, list[dict[str, Any]]] = {verdict: [] for verdict in _VERDICTS}
    for number, line in enumerate(paths[-1].read_bytes().splitlines() if paths else (), start=1):
        row = parse(paths[-1], line, number)
        texts, where = [row.get(key) for key in ("prompt", "answer", "verdict")], f"{paths[-1]}: line {number}"
        if not all(isinstance(text, str) for text in texts) or row["verdict"] not in found:
            raise DataError(f"{where}: found no answer, allowed: prompt, answer and one of {', '.join(_VERDICTS)}")
        if len(found[row["verdict"]]) < _SHOWN:
            prompt, answer = (f"{text[:_LONGEST]} …" if len(text) > _LONGEST else text for text in texts[:2])
            numbers = numbers_of(where, row, ("value", "tokens"))
            parts = numbers_of(where, row.get("parts"), row.get("parts") or (), "parts.")
            found[row["verdict"]].append(
                {"prompt": prompt, "answer": answer, "verdict": row["verdict"], **numbers, "parts": parts}
            )
    return [row for rows in found.values() for row in rows]


def models(numbers: dict[str, Any]) -> str:
    """Every model on the held-out tasks, as a card of the page."""
    found = numbers.get("rewards", {})
    if not found:
        return ""
    told = {key: heading for key, heading in MEASURED.items() if any(key in each for each in found.values())}
    rows = [[markup.model(role), *(_measured(each, key) for key in told)] for role, each in found.items()]
    note = "Tasks that no stage learned from, each answered once by sampling; the mean reward with its standard error."
    return markup.section("Held-out tasks", note, markup.table(["Model", *told.values()], ["number"] * len(told), rows))


def training(numbers: dict[str, Any]) -> str:
    """Curves, what was trained on, and some answers, as cards of the page."""
    return "\n".join(filter(None, (_curves(numbers), _samples(numbers))))


def _curves(numbers: dict[str, Any]) -> str:
    told, measured = (numbers.get("grpo", {}).get(kind, []) for kind in ("training", "validation"))
    minor = {"minor": True}
    panels = plots.panels(
        (
            "Held-out reward",
            "mean and standard error",
            measured,
            {"held_out_reward": ""},
            {"error": "held_out_reward_se"},
        ),
        ("Reward", "of a rollout's answers", told, {"reward": ""}, {}),
        ("Held-out reward", "by source", *plots.columns(measured, "held_out_reward_by_source"), {}),
        ("Held-out tasks, correct", "share of the answers", measured, {"held_out_correct": ""}, {}),
        ("Correct", "share of a rollout's answers", told, {"correct": ""}, {}),
        ("Held-out tasks, length", "tokens", measured, _lengths("held_out_"), {}),
        ("Length", "tokens of a rollout's answers", told, _lengths(), {}),
        ("KL from the reference", "nats per token", told, {"kl": ""}, {}),
        ("Entropy", "nats per token", told, {"entropy": ""}, {}),
        ("Groups with a signal", "share", told, {"signal": ""}, minor),
        ("Clipped", "share of the tokens", told, {"clipped": ""}, minor),
        ("Cut at the longest length", "share of the answers", told, {"cut": ""}, minor),
        ("What samples against what trains", "nats per token", told, {"mismatch": ""}, minor),
        ("Learning rate", "", told, {"lr": ""}, minor),
        ("Gradient norm", "", told, {"grad_norm": ""}, minor),
    )
    rows = [
        [
            escape(str(row.get("name", ""))),
            escape(str(row.get("language", ""))),
            *(f"{row[key]:,}" if key in row else "" for key in _COUNTS),
        ]
        for row in numbers.get("tasks", [])
    ]
    heads = ["Source", "Language", "Tasks", "Tokens of prompts", "Lines left out"]
    table = markup.table(heads, ["text", *["number"] * 3], rows) if rows else ""
    return markup.section("Reinforcement learning", "", panels + table) if panels or table else ""


def _lengths(of: str = "") -> dict[str, str]:
    return {f"{of}answer_tokens": "all", f"{of}wrong_tokens": "wrong"}


def _samples(numbers: dict[str, Any]) -> str:
    def text(who: str, content: str) -> str:
        return f'<p class="who">{who}</p><p class="text" dir="auto">{escape(content)}</p>'

    blocks = []
    for row in numbers.get("answers", []):
        facts = [f"reward {row['value']:g}"] if "value" in row else []
        facts += [f"{row['tokens']:,} tokens"] if "tokens" in row else []
        facts += [f"{escape(name)} {value:g}" for name, value in row["parts"].items()]
        verdict = markup.verdict(row["verdict"], _VERDICTS[row["verdict"]])
        answer = f"<div>{text(f'Answer {verdict}', row['answer'])}<p>{', '.join(facts)}</p></div>"
        prompt = f'<div class="prompt">{text("Task", row["prompt"])}</div>'
        blocks.append(f'<div class="sample">\n{prompt}\n<div class="answers">\n{answer}\n</div></div>')
    note = "The first right and the first wrong answers of the last rollout."
    return markup.section("Answers and their rewards", note, "\n".join(blocks)) if blocks else ""


def _measured(found: dict[str, float], key: str) -> str:
    if key not in found:
        return ""
    if key == "reward":
        error = f" ± {found['reward_se']:.3f}" if "reward_se" in found else ""
        return f"{found[key]:.3f}{error}"
    return words.percent(found[key]) if key in SHARES else f"{found[key]:,.1f}"


def table(numbers: dict[str, Any]) -> Table | None:
    """Every model on the held-out tasks, for a console."""
    found = numbers.get("rewards", {})
    if not found:
        return None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model")
    for heading in ("reward on\nheld-out tasks", "correct", "tokens of\nan answer", "of a\nwrong one"):
        table.add_column(heading, justify="right")
    for role, each in found.items():
        told = [_measured(each, key) for key in ("reward", "correct", "answer_tokens", "wrong_tokens")]
        table.add_row(Text(role), *(cell.replace("±", "+-") for cell in told))
    return table
