"""The answers of a rollout as training samples, as many in a sequence as fit, none of which sees another.

How long answers become is known when they are there, so that every update has another number of sequences and of
micro-batches; NeMo's loader draws the numbers of updates only, which makes a run go on at the right one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from megatron.core import parallel_state
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from bielik_nemo.data import packing
from bielik_nemo.engine.conversation_data import MORE, Weighted, lay
from bielik_nemo.engine.preference_data import PreferenceData


class Sampled(NamedTuple):
    """An answer as it is trained on."""

    prompt: np.ndarray  # int64 [m]
    answer: np.ndarray  # int64 [n], its end among them
    old: np.ndarray  # float32 [n], log-probability of each token under the model that it was sampled from, in nats
    reference: np.ndarray  # float32 [n], under the one that training began with
    advantage: float

    @property
    def length(self) -> int:
        """Predictions, those of the prompt among them."""
        return len(self.prompt) + len(self.answer) - 1


def weighted(prompt: np.ndarray, answer: np.ndarray) -> Weighted:
    """A prompt and its answer as a conversation, of which the answer counts."""
    ids = np.concatenate([prompt, answer])
    return Weighted(ids, (np.arange(len(ids)) >= len(prompt)).astype(np.float32))


def lay_answers(answers: Sequence[Sampled], seq_length: int, share: float = 1.0) -> dict[str, Tensor]:
    """One sample, as `lay` makes it, of prompts with their answers one behind the other.

    Args:
        answers: whose predictions fit.
        seq_length: s, positions of the sample.
        share: of the update's answers those that are in it.

    Returns:
        The sample with `answers` int64 `[s]`, the number of the answer at its tokens and -1 elsewhere; `old`,
        `reference` and `advantage` float32 `[s]`, those of the token that is predicted there; `share`, a scalar.
    """
    sample = lay([weighted(each.prompt, each.answer) for each in answers], seq_length)
    sample["answers"] = torch.full((seq_length,), -1)
    for name in ("old", "reference", "advantage"):
        sample[name] = torch.zeros(seq_length)
    start = 0
    for number, each in enumerate(answers):
        place = slice(start + len(each.prompt) - 1, start + each.length)
        sample["answers"][place] = number
        sample["old"][place] = torch.from_numpy(each.old)
        sample["reference"][place] = torch.from_numpy(each.reference)
        sample["advantage"][place] = each.advantage
        start = place.stop
    return sample | {"share": torch.tensor(share)}


class Update:
    """The sequences of one update, laid when they are asked for.

    Args:
        answers: those that are in it.
        share: of all of the update.
        seq_length: s.
        unit: what the number of sequences is a multiple of; those that are missing are empty.
        seed: of the packing.
    """

    def __init__(self, answers: Sequence[Sampled], share: float, seq_length: int, unit: int, seed: int):
        self.answers, self.share, self.seq_length = answers, share, seq_length
        packed = packing.pack(np.array([each.length for each in answers]), seq_length, seed)
        self.sequences = [items.tolist() for items in packed]
        self.sequences += [[]] * (-len(self.sequences) % unit)

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return lay_answers([self.answers[i] for i in self.sequences[index]], self.seq_length, self.share)

    @property
    def tokens(self) -> int:
        """Predictions in all sequences."""
        return sum(each.length for each in self.answers)


class Numbers(Dataset):
    """What NeMo's loader draws: numbers.

    Args:
        directory: of the tasks.
        count: of them.
    """

    def __init__(self, directory: str, count: int):
        self.directory, self.count = directory, count

    def __len__(self) -> int:
        return self.count + MORE

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"number": torch.tensor(index)}


class PolicyData(PreferenceData):
    """The data module: one micro-batch is drawn for each update, and what the update is made of comes from `begin`.

    Attributes:
        newest: the update that is done, or was done last.
        tokens: predictions of all updates so far, this one's too.
    """

    newest: Update | None = None
    tokens: int = 0

    def begin(self, update: Update) -> None:
        """Make the next step of these sequences."""
        self.newest, self.tokens = update, self.tokens + update.tokens
        self.own = self._own(update)

    def _own(self, update: Update) -> Iterator[dict[str, Tensor]]:
        """This data-parallel rank's micro-batches."""
        rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        size = self.micro_batch_size
        for start in range(rank * size, len(update), ranks * size):
            yield default_collate([update[index] for index in range(start, start + size)])

    def micro_batches(self, drawn: Iterator) -> Iterator[tuple[dict[str, Tensor]]]:
        """The next one, after the update's number has been drawn with its first."""
        if self.untouched:
            next(drawn)
            self.untouched = False
        yield (next(self.own),)

    def on_megatron_step_start(self, step: Any) -> Any:
        """NeMo's event, behind that of its sampler: so many micro-batches has this update."""
        self.untouched = True
        unit = self.micro_batch_size * parallel_state.get_data_parallel_world_size()
        return dataclasses.replace(step, num_microbatches=len(self.newest) // unit)

    def state_dict(self) -> dict[str, int]:
        """What has been drawn, and the tokens of it."""
        return {**super().state_dict(), "tokens": self.tokens}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after as many updates."""
        self.tokens = state_dict["tokens"]
        super().load_state_dict(state_dict)
