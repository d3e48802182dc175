"""Tasks -> tokens that ask, split by prompt into what trains and what measures.

Leaves `train.jsonl` and `held_out.jsonl` (see data/tasks.py), `summary.json` with the tokens that end an answer, and
`skipped.jsonl`: file, number and fault of every line that was left out.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, TextIO

from bielik_nemo import artifacts, ui
from bielik_nemo.align import scoring
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.data import chat, tasks
from bielik_nemo.data.chat import Example, Line, Tokens
from bielik_nemo.data.chat_template import TEMPLATES
from bielik_nemo.data.text import Document, is_held_out
from bielik_nemo.data.tokenizer import load_tokenizer
from bielik_nemo.errors import ConfigError
from bielik_nemo.stages.chat_sets import SIDES, SKIPPED, SUMMARY, Counted, check, one_sided


class _Side:
    """A file of tasks that counts them by source."""

    def __init__(self, file: TextIO):
        self.file = file
        self.sources: list[dict[str, int]] = []

    def __call__(self, line: Line, example: Example, tokens: Tokens) -> None:
        self.file.write(tasks.row(line, example.task, tokens, len(self.sources) - 1))
        self.sources[-1]["tasks"] += 1
        self.sources[-1]["tokens"] += len(tokens.ids)

    def begin(self) -> None:
        """What is added from here on is of the next source."""
        self.sources.append({"tasks": 0, "tokens": 0})

    @property
    def total(self) -> dict[str, int]:
        return {name: sum(counts[name] for counts in self.sources) for name in ("tasks", "tokens")}


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Write both sides of `grpo.sources`; returns the content of `summary.json`.

    Raises:
        ConfigError: a reward cannot be found or has other options.
        DataError: a source is missing or empty; more of its lines than allowed cannot be used; nothing of it is left
            for training; nothing at all is held out; the template does not suit the tokenizer.
    """
    if wrong := list(scoring.problems([source.rewards for source in config.grpo.sources])):
        raise ConfigError("\n".join(wrong))
    here, imported, fraction = run_dir / "tasks", run_dir / config.tokenizer_stage, config.chat.held_out_fraction
    tokenizer = load_tokenizer(
        imported / "tokenizer", Architecture.from_json(imported / "architecture.json").vocab_size
    )
    template = TEMPLATES[config.chat.template](tokenizer)
    rows = []
    with contextlib.ExitStack() as files:
        skipped, *sides = (
            files.enter_context(open(here / name, "w", encoding="utf-8"))
            for name in (SKIPPED, *(f"{side}.jsonl" for side in SIDES))
        )
        train, held_out = map(_Side, sides)
        advance = files.enter_context(ui.progress("tasks"))
        for index, source in enumerate(config.grpo.sources):
            train.begin()
            held_out.begin()
            lines = Counted(tasks.tasks(source, template), skipped)
            for line, example, (tokens,) in chat.tokenised(tokenizer, lines):
                aside = is_held_out(Document(example.prompt, "", 0), fraction, config.run.seed)
                (held_out if aside else train)(line, example, tokens)
                advance()
            skipped.flush()
            where = f"grpo.sources[{index}].path={source.path}"
            check(config, where, lines, here / SKIPPED)
            if not train.sources[index]["tasks"]:
                one_sided(config, f"tasks of {where}", "train")
            rows.append({"name": Path(source.path).name, "language": source.language, **train.sources[index]})
            rows[-1]["skipped"] = lines.skipped
        if not held_out.total["tasks"]:
            one_sided(config, "tasks", "held_out")
    summary = {name: side.total for name, side in zip(SIDES, (train, held_out), strict=True)}
    for name, counts in summary.items():
        ui.say(f"  {name}: {counts['tasks']:,} tasks, {counts['tokens']:,} tokens")
    if left_out := sum(row["skipped"] for row in rows):
        ui.say(f"  {left_out:,} lines were left out: {here / SKIPPED}")
    summary |= {"sources": rows, "stop_ids": tasks.stop_ids(tokenizer, template)}
    artifacts.write_json(here / SUMMARY, summary)
    return summary
