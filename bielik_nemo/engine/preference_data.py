"""Preference pairs as training samples: both answers of a pair in one sequence, neither of which sees the other.

Every step has the same number of pairs, whatever the length of a sequence: the pairs of a step are packed for
themselves, into as many sequences as that step needs which needs most; what others do not need is empty, and counts
nothing.

A pair that is longer than a sequence is cut. Its prompt loses its beginning, the same of both conversations, but keeps
a quarter of the sequence; then the conversations lose their ends: each has half of the sequence, or what the other
leaves of it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from bielik_nemo.data import packing
from bielik_nemo.engine import datasets
from bielik_nemo.engine.conversation_data import MORE, SampleData, Weighted, lay
from bielik_nemo.engine.labelled import Conversations
from bielik_nemo.errors import DataError

Pair = tuple[Weighted, Weighted]
"""Chosen and rejected: the whole conversation of each."""


def cut(lengths: tuple[int, int], prompt: int, room: int) -> tuple[int, int, int]:
    """What stays of a pair that is longer than a sequence.

    Args:
        lengths: tokens of its two conversations.
        prompt: tokens before the first one that is an answer's, in both.
        room: predictions that a sequence holds.

    Returns:
        The first token that stays of both, and how many of each stay from there on.
    """
    over = sum(lengths) - 2 - room
    start = min(-(-over // 2), max(prompt - room // 4, 0)) if over > 0 else 0
    chosen, rejected = (length - 1 - start for length in lengths)
    half = room // 2
    kept = min(chosen, max(half, room - rejected)), min(rejected, max(room - half, room - chosen))
    return start, kept[0] + 1, kept[1] + 1


class Pairs:
    """The pairs of a directory, one dataset per source, as one row, cut to a sequence.

    Args:
        directory: `preferences/train` or `preferences/held_out`.
        seq_length: predictions of both answers' conversations together that a pair may have.

    Attributes:
        names: of the datasets.
        source: of each pair, the number of its dataset `[n]`.
        lengths: predictions of each pair `[n]`, cut.
        usable: numbers of the pairs of which both answers are there, after the cut too.
        cut: how many are cut.

    Raises:
        DataError: a dataset does not hold pairs, or no pair is usable.
    """

    def __init__(self, directory: str | Path, seq_length: int):
        prefixes = datasets.prefixes(Path(directory))
        self.names, self.seq_length = list(prefixes), seq_length
        self.sets = [Conversations(prefix) for prefix in prefixes.values()]
        for name, each in zip(self.names, self.sets, strict=True):
            if len(each) % 2:
                raise DataError(f"{Path(directory) / name}: {len(each)} conversations, allowed: two for each pair")
        counts = [len(each) // 2 for each in self.sets]
        self.first = np.cumsum([0, *counts])
        self.source = np.repeat(np.arange(len(counts)), counts)
        whole = np.concatenate([each.lengths for each in self.sets]).reshape(-1, 2)
        self.lengths = whole.sum(1) - 2
        long = (self.lengths > seq_length).nonzero()[0].tolist()
        self.cut, self._cuts, idle = len(long), {}, []
        for pair in long:
            prompt = min(int(marks.argmax()) for _, marks in self._whole(pair))
            self._cuts[pair] = start, *kept = cut(tuple(whole[pair].tolist()), prompt, seq_length)
            self.lengths[pair] = sum(kept) - 2
            if not all(
                marks[start + 1 : start + stay].any() for (_, marks), stay in zip(self._whole(pair), kept, strict=True)
            ):
                idle.append(pair)
        self.usable = np.setdiff1d(np.arange(len(whole)), idle)
        if not len(self.usable):
            raise DataError(f"{directory}: no pair has both its answers within a sequence of {seq_length}")

    def __len__(self) -> int:
        return len(self.source)

    def _whole(self, pair: int) -> list[tuple[np.ndarray, np.ndarray]]:
        number = self.source[pair]
        place = 2 * int(pair - self.first[number])
        return [self.sets[number][place + answer] for answer in (0, 1)]

    def __getitem__(self, pair: int) -> Pair:
        start, *kept = self._cuts.get(pair, (0, None, None))
        ends = [None if stay is None else start + stay for stay in kept]
        chosen, rejected = (
            Weighted(ids[start:end], marks[start:end].astype(np.float32))
            for (ids, marks), end in zip(self._whole(pair), ends, strict=True)
        )
        return chosen, rejected

    def split(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Values `[n, ...]` of all pairs by the datasets' names."""
        return dict(zip(self.names, np.split(values, self.first[1:-1]), strict=True))


def lay_pairs(
    pairs: Sequence[Pair], seq_length: int, places: int, reference: np.ndarray | None = None
) -> dict[str, Tensor]:
    """One sample, as `lay` makes it, of both answers of each pair one behind the other.

    Args:
        pairs: whose predictions fit.
        seq_length: s, positions of the sample.
        places: pairs that every sample has room for.
        reference: their log-probabilities under the reference model `[pairs, 2]`; None: not known.

    Returns:
        The sample with `answers` int64 `[s]`: 2p at the tokens of the chosen answer of its pair p, 2p + 1 at those of
        the rejected one, -1 elsewhere; and `reference` float32 `[places, 2]`, NaN where there is no pair.
    """
    conversations = [answer for pair in pairs for answer in pair]
    sample = lay(conversations, seq_length)
    lengths = torch.tensor([len(each.ids) - 1 for each in conversations], dtype=torch.int64)
    answers = torch.full((seq_length,), -1)
    answers[: int(lengths.sum())] = torch.repeat_interleave(lengths)
    given = torch.full((places, 2), math.nan)
    if reference is not None:
        given[: len(pairs)] = torch.from_numpy(reference)
    return sample | {"answers": answers.where(sample["loss_mask"] > 0, -1), "reference": given}


def batch(samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Samples as `forward.passes` takes them when logits are wanted: their labels are `words`."""
    found = default_collate(list(samples))
    return {"words" if name == "labels" else name: each for name, each in found.items()}


class Steps:
    """Which pairs each step of a run has, and which of them share a sequence.

    Args:
        pairs: those that there are; every epoch goes through the usable ones in another order.
        batch: pairs of a step.
        seed: of the orders.
    """

    def __init__(self, pairs: Pairs, batch: int, seed: int):
        self.pairs, self.batch, self.seed = pairs, batch, seed
        self.order = functools.lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.pairs.usable)

    def __getitem__(self, step: int) -> list[np.ndarray]:
        """The pairs of each sequence of a step."""
        row, epoch = range(step * self.batch, (step + 1) * self.batch), len(self.pairs.usable)
        drawn = np.array([self.order(place // epoch)[place % epoch] for place in row])
        packed = packing.pack(self.pairs.lengths[drawn], self.pairs.seq_length, self.seed)
        return [drawn[items] for items in packed]


class Plan(NamedTuple):
    """What the steps of a run are made of."""

    batches: Steps
    steps: int  # how many there are
    sequences: int  # of each step
    places: int  # pairs of the fullest sequence
    filled: float  # share of the positions that hold a token


@functools.lru_cache(maxsize=2)
def plan(
    directory: str, seq_length: int, batch: int, seed: int, unit: int, epochs: float, max_steps: int | None
) -> Plan:
    """What the steps are made of.

    Args:
        directory: `preferences/train`.
        seq_length: s.
        batch: pairs of a step.
        seed: of their order.
        unit: what the number of sequences of a step must be a multiple of.
        epochs: how often each pair is seen.
        max_steps: how many steps there are; None: as many as the epochs take.

    Raises:
        DataError: see `Pairs`.
    """
    pairs = Pairs(directory, seq_length)
    batches, steps = Steps(pairs, batch, seed), max_steps or math.ceil(epochs * len(pairs.usable) / batch)
    most, places, tokens = 0, 0, 0
    for step in range(steps):
        packed = batches[step]
        most, places = max(most, len(packed)), max(places, *map(len, packed))
        tokens += sum(int(pairs.lengths[each].sum()) for each in packed)
    sequences = -(-most // unit) * unit
    return Plan(batches, steps, sequences, places, tokens / (steps * sequences * seq_length))


def references(file: str | Path, directory: str | Path, pairs: Pairs) -> np.ndarray:
    """Log-probabilities under the reference model `[n, 2]` of the pairs of a directory, from a file of the stage's.

    Raises:
        DataError: the file is not there, or is of other pairs.
    """
    try:
        found = load_file(file)
        values = [found[f"{Path(directory).name}/{name}"] for name in pairs.names]
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    whole = np.concatenate(values)
    if whole.shape != (len(pairs), 2):
        raise DataError(f"{file}: holds {len(whole):,} pairs of {directory}, allowed: its {len(pairs):,}")
    return whole


class PreferenceDataset(Dataset):
    """Samples of a training run, those of each step one behind the other.

    Args:
        log_probs: file with the log-probabilities of the pairs under the reference model.
        directory: and all behind it: see `plan`.
    """

    def __init__(
        self,
        log_probs: str,
        directory: str,
        seq_length: int,
        batch: int,
        seed: int,
        unit: int,
        epochs: float,
        max_steps: int | None,
    ):
        self.plan = plan(directory, seq_length, batch, seed, unit, epochs, max_steps)
        self.pairs = self.plan.batches.pairs
        self.reference = references(log_probs, directory, self.pairs)

    def __len__(self) -> int:
        return self.plan.steps * self.plan.sequences + MORE

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        step, place = divmod(index % (len(self) - MORE), self.plan.sequences)
        packed = self.plan.batches[step]
        chosen = packed[place].tolist() if place < len(packed) else []
        pairs = [self.pairs[pair] for pair in chosen]
        return lay_pairs(pairs, self.pairs.seq_length, self.plan.places, self.reference[chosen])


class PreferenceData(SampleData):
    """Its data module: a run goes on at the same step, also where a step now has another number of sequences."""

    def state_dict(self) -> dict[str, int]:
        """What has been drawn, and how many sequences a step had."""
        return {**super().state_dict(), "sequences": self.global_batch_size}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after as many steps."""
        steps = state_dict["consumed_samples"] // state_dict["sequences"]
        super().load_state_dict({"consumed_samples": steps * self.global_batch_size})
