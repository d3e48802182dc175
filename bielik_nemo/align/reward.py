"""What a reward is: a pure function of an answer and its task, named in the configuration by its dotted path.

    def reward(completion: Completion, task: Task, **options: float) -> Reward

It reads nothing but its arguments, runs nothing that an answer says, and gives the same for the same. Options are those
of `grpo.sources[i].rewards[j].options`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """What a reward found."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNVERIFIABLE = "unverifiable"  # the task does not say enough to tell, or the checker cannot decide


@dataclass(frozen=True)
class Completion:
    """What the model wrote.

    Attributes:
        text: the answer without its end mark.
        tokens: how many it has, the end mark among them.
        ended: whether the model ended it; False: it was cut at the longest length.
    """

    text: str
    tokens: int
    ended: bool = True


@dataclass(frozen=True)
class Task:
    """What was asked.

    Attributes:
        prompt: content of the last turn of the user.
        answer: what the task's line says is right: text, or a call `{"name": ..., "arguments": {...}}`; None: nothing.
        language: in which to answer, such as `pl`; empty: any.
        tools: descriptions of the functions that may be called, with JSON schemas of their arguments.
    """

    prompt: str
    answer: Any = None
    language: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Reward:
    """What an answer is worth.

    Attributes:
        value: the reward, mostly from 0 to 1.
        verdict: what it found.
        parts: of which it is made, by name; for people and logs.
    """

    value: float
    verdict: Verdict
    parts: Mapping[str, float] = field(default_factory=dict)


RewardFunction = Callable[..., Reward]
