"""What the stages `chat` and `preferences` share: lines -> datasets of marked tokens, in one pass over every source.

Leaves `train/<number>.{bin,idx}` and `held_out/<number>.{bin,idx}` for every source of which there is something on that
side, beside them the weights of conversations, `summary.json`, and `skipped.jsonl`: file, number and fault of every
line that was left out. A failure leaves `skipped.jsonl`, which says what is to be mended.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.config_align import ChatSource, PreferenceSource
from bielik_nemo.data import chat
from bielik_nemo.data.chat import Example, Line, Tokens
from bielik_nemo.data.chat_formats import BadLine
from bielik_nemo.data.chat_template import TEMPLATES, ChatML, OwnTemplate
from bielik_nemo.data.text import Document, is_held_out
from bielik_nemo.data.tokenizer import load_tokenizer
from bielik_nemo.engine import datasets, labelled
from bielik_nemo.errors import DataError

SUMMARY, SKIPPED, WEIGHTS = "summary.json", "skipped.jsonl", "weights.safetensors"
SIDES = ("train", "held_out")
NAMED = 3
"""Lines that an error names."""


class _Side:
    """A dataset: counts what is added, keeps the weights."""

    def __init__(self, add: Callable[[Sequence[int], Sequence[bool]], None], unit: str):
        self.add, self.unit, self.weights = add, unit, bytearray()
        self.counts = {unit: 0, "tokens": 0, "trained_tokens": 0}

    def __call__(self, example: Example, texts: list[Tokens]) -> None:
        for ids, trained in texts:
            self.add(ids.tolist(), trained.tolist())
            self.counts["tokens"] += len(ids)
            self.counts["trained_tokens"] += int(trained.sum())
        self.counts[self.unit] += 1
        if example.weight is not None:
            self.weights.append(example.weight)


class Counted:
    """The lines of a source, those that cannot be used counted and written to a file."""

    def __init__(self, lines: Iterable[Line], skipped: TextIO):
        self.lines, self.file = lines, skipped
        self.count = self.skipped = 0
        self.named: list[str] = []

    def __iter__(self) -> Iterator[Line]:
        for line in self.lines:
            self.count += 1
            if isinstance(line.example, BadLine):
                self.skipped += 1
                row = {"file": line.file, "line": line.number, "why": str(line.example)}
                self.file.write(json.dumps(row, ensure_ascii=False) + "\n")
                if len(self.named) < NAMED:
                    self.named.append(f"{line.file}:{line.number}: {line.example}")
            yield line


def write(
    config: Config,
    here: Path,
    key: str,
    sources: Sequence[ChatSource] | Sequence[PreferenceSource],
    read: Callable[[Any, ChatML | OwnTemplate], Iterator[Line]],
    unit: str,
) -> dict[str, Any]:
    """Write both sides of every source.

    Args:
        config: its section `chat` and the seed.
        here: directory of the stage, beside that of the tokenizer's.
        key: of the sources.
        sources: what is read.
        read: gives the lines of one of them.
        unit: what a usable line is called.

    Returns:
        Content of `summary.json`.

    Raises:
        DataError: a source is missing or empty; more of its lines than allowed cannot be used; nothing in it is
            trained, or everything; nothing of it is left for training; nothing at all is held out; the template does
            not suit the tokenizer.
    """
    imported, fraction = here.parent / config.tokenizer_stage, config.chat.held_out_fraction
    vocab_size = Architecture.from_json(imported / "architecture.json").vocab_size
    tokenizer = load_tokenizer(imported / "tokenizer", vocab_size)
    template = TEMPLATES[config.chat.template](tokenizer)
    for name in SIDES:
        (here / name).mkdir()
    sides: dict[str, list[_Side]] = {name: [] for name in SIDES}
    rows = []
    with contextlib.ExitStack() as files:
        skipped = files.enter_context(open(here / SKIPPED, "w", encoding="utf-8"))
        advance = files.enter_context(ui.progress(unit))
        for index, source in enumerate(sources):
            for name in SIDES:
                prefix = here / name / chat.NAME.format(index)
                sides[name].append(_Side(files.enter_context(labelled.writer(prefix, vocab_size)), unit))
            lines = Counted(read(source, template), skipped)
            train, held_out = (sides[name][index] for name in SIDES)
            for _, example, texts in chat.tokenised(tokenizer, lines):
                aside = is_held_out(Document(example.prompt, "", 0), fraction, config.run.seed)
                (held_out if aside else train)(example, texts)
                advance()
            skipped.flush()
            where = f"{key}[{index}].path={source.path}"
            check(config, where, lines, here / SKIPPED)
            chat.check_marks(where, *(_total([train, held_out], name) for name in ("tokens", "trained_tokens")))
            if not train.counts[unit]:
                one_sided(config, f"{unit} of {where}", "train")
            rows.append({"name": Path(source.path).name, "language": source.language, **train.counts})
            rows[-1]["skipped"] = lines.skipped
        if not _total(sides["held_out"], unit):
            one_sided(config, unit, "held_out")
    for name in SIDES:
        _finish(here / name, sides[name], unit)
    summary = {name: {count: _total(sides[name], count) for count in sides[name][0].counts} for name in SIDES}
    for name, counts in summary.items():
        share = counts["trained_tokens"] / counts["tokens"]
        ui.say(f"  {name}: {counts[unit]:,} {unit}, {counts['tokens']:,} tokens, {share:.1%} of them trained")
    if left_out := sum(row["skipped"] for row in rows):
        ui.say(f"  {left_out:,} lines were left out: {here / SKIPPED}")
    artifacts.write_json(here / SUMMARY, summary | {"sources": rows})
    return summary | {"sources": rows}


def check(config: Config, where: str, lines: Counted, skipped: Path) -> None:
    """Refuse a source without lines, or with more that cannot be used than allowed.

    Raises:
        DataError: begins with `where`.
    """
    allowed = config.chat.max_bad_share
    if not lines.count:
        raise DataError(f"{where}: holds no lines")
    if lines.skipped > allowed * lines.count:
        share = f"{lines.skipped:,} of {lines.count:,} lines ({lines.skipped / lines.count:.2%}) cannot be used"
        raise DataError(
            f"{where}: {share}, allowed: {allowed:.2%} (chat.max_bad_share); {'; '.join(lines.named)}; all: {skipped}"
        )


def one_sided(config: Config, what: str, side: str) -> None:
    """Refuse a split of which nothing falls on one side.

    Raises:
        DataError: always.
    """
    raise DataError(
        f"chat.held_out_fraction={config.chat.held_out_fraction}: no {what} fall on the {side} side; give more of them "
        "or another fraction"
    )


def _total(sides: list[_Side], count: str) -> int:
    return sum(side.counts[count] for side in sides)


def _finish(directory: Path, sides: list[_Side], unit: str) -> None:
    """Remove datasets of nothing, which Megatron cannot read; write the weights of the others."""
    from safetensors.numpy import save_file

    weights = {}
    for index, side in enumerate(sides):
        name = chat.NAME.format(index)
        if not side.counts[unit]:
            for suffix in (".bin", ".idx"):
                (directory / f"{name}{suffix}").unlink()
        elif side.weights:
            weights[name] = np.frombuffer(bytes(side.weights), dtype=np.uint8)
    if weights:
        save_file(weights, directory / WEIGHTS)


def held_out_sources(directory: Path) -> list[dict[str, Any]]:
    """What `summary.json` says of the sources of which something is held out, in the order of their datasets.

    Args:
        directory: of the stage `chat` or `preferences`.
    """
    there = datasets.prefixes(directory / "held_out")  # a source of which nothing is held out has no dataset
    sources = artifacts.read_json(directory / SUMMARY)["sources"]
    return [source for number, source in enumerate(sources) if chat.NAME.format(number) in there]


def held_out_column(directory: str, name: str) -> list[Any]:
    """One of the things that `held_out_sources` says, of each."""
    return [source[name] for source in held_out_sources(Path(directory))]
