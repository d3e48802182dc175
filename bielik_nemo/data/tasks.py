"""Tasks whose answers can be verified: lines of .jsonl -> the tokens that ask, and what a reward is told.

A line is {"prompt": text or messages, "answer": what the source's rewards compare with, or null} and, where wanted,
"language" (otherwise the source's) and "tools", which are offered in the system turn as in conversations (see
chat_formats.py). Messages end with the user or a tool. A task of which its source's first reward cannot tell whether an
answer is right is a bad line: it is found here, and not after hours of training.

What is held out is decided by the text before the first answer, as it is of conversations: with the same seed and
share, a prompt that is held out here is held out of SFT and of preferences as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bielik_nemo.align.reward import Completion, Task, Verdict
from bielik_nemo.align.scoring import load
from bielik_nemo.data import builtin_tasks, chat_formats
from bielik_nemo.data.chat import Example, Line, Tokens, lines_of
from bielik_nemo.data.chat_formats import BadLine, Turn
from bielik_nemo.data.chat_template import ChatML, OwnTemplate, Rendered
from bielik_nemo.validation.ranges import LANGUAGE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bielik_nemo.align.reward import RewardFunction
    from bielik_nemo.config_grpo import RewardTerm, TaskSource


PROBE = Completion("I do not know the answer to this question. \\boxed{0}", 16)
"""An answer that every reward can judge, if it knows the task's."""


class Prepared(NamedTuple):
    """A task in tokens."""

    ids: np.ndarray  # int64 [n], of the text that asks for the answer
    task: Task
    source: int  # number of its source in grpo.sources
    place: str  # file and line


def tasks(source: TaskSource, template: ChatML | OwnTemplate) -> Iterator[Line]:
    """The tasks of a source, and the lines of which none can be made; see `chat.lines_of` for errors.

    Raises:
        ConfigError: the source's first reward cannot be found.
    """
    first = source.rewards[0] if source.rewards else None
    reward = load(first.function) if first else None

    def read(record: dict[str, Any]) -> Example:
        turns = chat_formats.asked(record)
        task = _task(record, turns, source.language)
        if first:
            _verifiable(task, reward, first)
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
    if isinstance(answer, bool):
        raise BadLine("'answer' is true or false, allowed: text, a number, an object, a list or null")
    if isinstance(answer, int | float):
        answer = json.dumps(answer)
    chat_formats.check_text(json.dumps(answer, ensure_ascii=False), "'answer'")
    language = record.get("language") or language
    if not isinstance(language, str) or (language and not LANGUAGE.fullmatch(language)):
        raise BadLine("'language' is no word such as pl or en-GB")
    asked = next(turn.content for turn in reversed(turns) if turn.role == "user")
    return Task(asked, answer, language, tuple(record.get("tools") or ()))


def _verifiable(task: Task, reward: RewardFunction, term: RewardTerm) -> None:
    """Refuse a task that its reward cannot judge.

    Raises:
        BadLine: names the reward.
    """
    try:
        verdict = reward(PROBE, task, **term.options).verdict
    except Exception as error:  # whatever the user's own function may raise
        raise BadLine(f"{term.function} raises {type(error).__name__}") from None
    if verdict is Verdict.UNVERIFIABLE:
        raise BadLine(f"{term.function} cannot tell from this task whether an answer is right")
