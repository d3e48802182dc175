"""Conversations as training samples: laid one behind the other in sequences, none of which sees another.

Token j of a conversation is predicted at position j - 1, so that one of n tokens takes n - 1 positions, no prediction
crosses from one to the next, and a packed sequence has the loss of its conversations alone. What a sequence has left at
its end is a text of its own, in which nothing is trained.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor
from torch.utils.data import Dataset

from bielik_nemo.data import packing
from bielik_nemo.data.packing import Packs
from bielik_nemo.engine import attention, cpu, datasets
from bielik_nemo.engine.labelled import Conversations
from bielik_nemo.errors import DataError

cpu.enable()

from nemo.collections.llm.gpt.data.pre_training import PreTrainingDataModule  # noqa: E402

WEIGHTS = "weights.safetensors"
MORE = 1
"""Samples that a dataset has beyond those of the run: NeMo refuses to begin where none is left, though a run that had
done its last step when it was killed needs none (nemo 2.7.3)."""


class Weighted(NamedTuple):
    """A conversation as it is trained on."""

    ids: np.ndarray  # int64 [n]
    weights: np.ndarray  # float32 [n], of each token as a label; 0: not trained


def lay(conversations: Sequence[Weighted], seq_length: int, packed: bool = True) -> dict[str, Tensor]:
    """One sample: conversations one behind the other.

    Args:
        conversations: of at least two tokens each, whose predictions fit.
        seq_length: s, positions of the sample.
        packed: keep them apart; False: there is one at most, behind which nothing is trained, and attention to all
            tokens before is right without being told.

    Returns:
        `tokens`, `labels`, `position_ids` int64 `[s]`, positions counted anew in each conversation; `loss_mask` float32
        `[s]`, the weights of the labels; what says where attention may go (see `attention.apart`).
    """
    sample = {name: torch.zeros(seq_length, dtype=torch.int64) for name in ("tokens", "labels")}
    sample["loss_mask"] = torch.zeros(seq_length)
    starts = [0]
    for ids, weights in conversations:
        place = slice(starts[-1], starts[-1] + len(ids) - 1)
        sample["tokens"][place] = torch.from_numpy(ids[:-1])
        sample["labels"][place] = torch.from_numpy(ids[1:])
        sample["loss_mask"][place] = torch.from_numpy(weights[1:])
        starts.append(place.stop)
    begun = [start for start in starts if start < seq_length]
    lengths = torch.tensor([*begun, seq_length]).diff()
    sample["position_ids"] = torch.cat([torch.arange(length) for length in lengths.tolist()])
    return sample | (attention.apart(begun, seq_length) if packed or not attention.HAVE_TE else {})


class Corpus:
    """The conversations of a directory, one dataset per source, as one row of items, cut to a sequence.

    Args:
        directory: `chat/train` or `chat/held_out`.
        seq_length: predictions that a conversation may have; what is behind them is cut.

    Attributes:
        names: of the datasets.
        lengths: predictions of each item `[n]`.
        source: of each item, the number of its dataset `[n]`.
        usable: numbers of the items in which something is trained, after the cut too.
        cut: how many are cut.
    """

    def __init__(self, directory: str | Path, seq_length: int):
        prefixes = datasets.prefixes(Path(directory))
        self.names, self.seq_length = list(prefixes), seq_length
        self.sets = [Conversations(prefix) for prefix in prefixes.values()]
        weights = load_file(Path(directory) / WEIGHTS)
        self.weights = [weights[name] for name in self.names]
        whole = np.concatenate([each.lengths for each in self.sets]) - 1
        self.first = np.cumsum([0, *map(len, self.sets)])
        self.source = np.repeat(np.arange(len(self.sets)), list(map(len, self.sets)))
        self.lengths, long = np.minimum(whole, seq_length), whole > seq_length
        self.cut = int(long.sum())
        idle = [item for item in long.nonzero()[0].tolist() if not self[item].weights[1:].any()]
        self.usable = np.setdiff1d(np.arange(len(whole)), idle)

    def __getitem__(self, item: int) -> Weighted:
        number = self.source[item]
        local = int(item - self.first[number])
        ids, trained = (each[: self.seq_length + 1] for each in self.sets[number][local])
        # In float64: 70 hundredths are then the float32 that is nearest to 0.7.
        return Weighted(ids, (trained * (self.weights[number][local] / 100)).astype(np.float32))


class Plan(NamedTuple):
    """Which conversations share a sequence."""

    corpus: Corpus
    packs: Packs  # of the corpus's items

    @property
    def filled(self) -> float:
        """Share of the positions that hold a token."""
        return float(self.corpus.lengths[self.packs.items].sum() / (len(self.packs) * self.corpus.seq_length))


@functools.lru_cache(maxsize=2)
def plan(directory: str, seq_length: int, packed: bool, seed: int) -> Plan:
    """Every conversation of a directory in which something is trained, in sequences.

    Raises:
        DataError: nothing is trained in any of them, once they are cut.
    """
    corpus = Corpus(directory, seq_length)
    if not len(corpus.usable):
        raise DataError(f"{directory}: no conversation has a trained token within a sequence of {seq_length}")
    lengths = corpus.lengths[corpus.usable]
    packs = packing.pack(lengths, seq_length, seed) if packed else packing.alone(len(lengths))
    return Plan(corpus, Packs(corpus.usable[packs.items], packs.starts))


class ConversationDataset(Dataset):
    """Samples of a training run, epoch after epoch in another order.

    Args:
        directory: `chat/train`.
        seq_length: s.
        packed: as many conversations in a sequence as fit, not one.
        seed: of their order.
        samples: of the whole run.
    """

    def __init__(self, directory: str, seq_length: int, packed: bool, seed: int, samples: int):
        self.plan = plan(directory, seq_length, packed, seed)
        self.seq_length, self.packed, self.seed, self.samples = seq_length, packed, seed, samples
        self.order = functools.lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.plan.packs))

    def __len__(self) -> int:
        return self.samples + MORE

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        epoch, place = divmod(index, len(self.plan.packs))
        items = self.plan.packs[self.order(epoch)[place]]
        return lay([self.plan.corpus[item] for item in items], self.seq_length, self.packed)


class SampleData(PreTrainingDataModule):
    """NeMo's resumable data module over a dataset that is there already.

    Args:
        dataset: its samples, in the order in which they are drawn.
        directory: it is made of.
        settings: of `PreTrainingDataModule`, but those that only its own datasets need.
    """

    def __init__(self, dataset: Dataset, directory: str, **settings: Any):
        super().__init__(paths=[directory], output_log=False, **settings)
        self.dataset = dataset

    def build(self, *args: Any, **kwargs: Any) -> None:
        """Draw from the dataset; nothing is drawn for NeMo's validation and test, see `training.trainer`."""
        self._train_ds = self._validation_ds = self._test_ds = self.dataset
