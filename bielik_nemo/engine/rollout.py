"""What samples answers from the model that is trained: the interface that GRPO knows, whatever is behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bielik_nemo.errors import DataError


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_tokens: of an answer, its end among them.
        stop_ids: tokens that end an answer; they belong to it.
        stop: texts that end an answer, with the token that completes them.
        temperature: 0: always the likeliest token.
        top_p: of the likeliest tokens, as many as have this probability together; 1: all.
        top_k: of the likeliest tokens, this many; 0: all.
        seed: of the noise. That of answer j to a prompt depends on this, the prompt's key, j and the token's place
            alone: not on the layout, the batch or what was drawn before.
    """

    max_tokens: int
    stop_ids: tuple[int, ...]
    stop: tuple[str, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


class Answer(NamedTuple):
    """One answer."""

    ids: list[int]  # its tokens, the one that ended it among them
    log_probs: list[float]  # of each, in nats, under softmax(logits / temperature) over all words; temperature 0: as 1
    ended: bool  # False: cut at `Sampling.max_tokens`


class RolloutEngine(Protocol):
    """Samples answers, on all ranks of a copy of the model alike."""

    def generate(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[int], samples: int, sampling: Sampling
    ) -> Iterator[tuple[int, list[Answer]]]:
        """Answers to prompts, as they are finished.

        Args:
            prompts: token ids, at least one each.
            keys: of each prompt, a number that its noise depends on.
            samples: answers to each.
            sampling: how they are drawn.

        Yields:
            Number of a prompt and its answers; each prompt once, in any order, but in the same one on every rank that
            shares this copy of the model.
        """


def check_lengths(prompts: Sequence[Sequence[int]], max_tokens: int, positions: int) -> None:
    """Refuse prompts that are empty, or do not fit a model's positions together with the longest answer.

    The last token of an answer needs none: nothing follows it.

    Raises:
        DataError: naming the first.
    """
    most = positions + 1 - max_tokens
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= most:
            raise DataError(
                f"prompt {number} of a rollout: found {len(prompt)} tokens, allowed: 1 to {most}, so that all but the "
                f"last token of an answer of up to {max_tokens} fit the model's {positions} positions"
            )
