"""Tasks whose answers can be verified: lines of .jsonl -> the tokens that ask, and what a reward is told.

A line is {"prompt": text or messages, "answer": text, number, object or null} with, where wanted, "language" (otherwise
the source's) and "tools", which are offered in the system turn as in conversations (see chat_formats.py). Messages end
with the user or a tool. What is held out is decided by the text before the first answer, as it is of conversations:
with the same seed and share, a prompt that is held out here is held out of SFT and of preferences as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bielik_nemo.align.reward import Task
from bielik_nemo.data import builtin_tasks, chat_formats
from bielik_nemo.data.chat import Example, Line, Tokens, lines_of
from bielik_nemo.data.chat_formats import BadLine, Turn
from bielik_nemo.data.chat_template import ChatML, OwnTemplate, Rendered
from bielik_nemo.validation.ranges import LANGUAGE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bielik_nemo.config_grpo import TaskSource


class Prepared(NamedTuple):
    """A task in tokens."""

    ids: np.ndarray  # int64 [n], of the text that asks for the answer
    task: Task
    source: int  # number of its source in grpo.sources
    place: str  # file and line


def tasks(source: TaskSource, template: ChatML | OwnTemplate) -> Iterator[Line]:
    """The tasks of a source, and the lines of which none can be made; see `chat.lines_of` for errors."""

    def read(record: dict[str, Any]) -> Example:
        turns = chat_formats.asked(record)
        task = _task(record, turns, source.language)
        return Example(chat_formats.opening(turns), (Rendered(template.ask(turns), []),), None, task)

    return lines_of(source.path, builtin_tasks.tasks, read)


def stop_ids(tokenizer: PreTrainedTokenizerBase, template: ChatML | OwnTemplate) -> list[int]:
    """Tokens that end an answer."""
    return tokenizer.convert_tokens_to_ids(list(template.ends))


def row(line: Line, task: Task, tokens: Tokens, source: int) -> str:
    """A task as the stage leaves it: one line of JSON."""
    values = {
        "source": source,
        "place": f"{line.file}:{line.number}",
        "ids": tokens.ids.tolist(),
        "prompt": task.prompt,
        "answer": task.answer,
        "language": task.language,
        "tools": list(task.tools),
    }
    return json.dumps(values, ensure_ascii=False) + "\n"


def read(path: Path) -> list[Prepared]:
    """The tasks of a file that the stage `tasks` left, in order."""
    with path.open(encoding="utf-8") as lines:
        return [_prepared(json.loads(line)) for line in lines]


def _prepared(row: dict[str, Any]) -> Prepared:
    task = Task(row["prompt"], row["answer"], row["language"], tuple(row["tools"]))
    return Prepared(np.array(row["ids"], dtype=np.int64), task, row["source"], row["place"])


def _task(record: dict[str, Any], turns: list[Turn], language: str) -> Task:
    """What a reward is told.

    Raises:
        BadLine: no key `answer`, or one of the keys is of another kind.
    """
    if "answer" not in record:
        raise BadLine("no key 'answer' (null: there is nothing to compare with)")
    answer = record["answer"]
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | dict | None):
        raise BadLine("'answer' is no text, number, object or null")
    if isinstance(answer, int | float):
        answer = json.dumps(answer)
    chat_formats.check_text(json.dumps(answer, ensure_ascii=False), "'answer'")
    language = record.get("language") or language
    if not isinstance(language, str) or (language and not LANGUAGE.fullmatch(language)):
        raise BadLine("'language' is no word such as pl or en-GB")
    asked = next(turn.content for turn in reversed(turns) if turn.role == "user")
    return Task(asked, answer, language, tuple(record.get("tools") or ()))
