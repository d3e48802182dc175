"""The held-out pairs on which every model of a run is measured: the same ones, in the same sequences, each time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bielik_nemo.data import packing
from bielik_nemo.engine import attention, distributed, forward
from bielik_nemo.engine.preference import LAST, Preference
from bielik_nemo.engine.preference_data import Pairs, batch, lay_pairs, references

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

RECORDED = ("loss", "accuracy", "margin", "chosen_log_ratio", "rejected_log_ratio")
"""What is written down, as `held_out_` and its name."""


@dataclass(frozen=True)
class HeldOutPairs:
    """The first pairs of every source of a directory."""

    directory: str  # preferences/held_out
    log_probs: str  # file with their log-probabilities under the reference model
    seq_length: int
    pairs: int  # in which the sources have equal parts
    batch_size: int
    preference: Preference

    def record(self, model: GPTModel) -> dict[str, Any]:
        """What is to be written down of a model: means over pairs."""
        found = self.measure(model)
        return {f"held_out_{name}": found[name] for name in RECORDED}

    def measure(self, model: GPTModel, on_batch: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Mean over all pairs of what `Preference.measure` names; the same on every rank.

        Args:
            model: this rank's part.
            on_batch: called once a batch is through.
        """
        totals = torch.zeros(len(self.preference.names) + 1, dtype=torch.float64, device=distributed.device())

        def add(logits: Tensor, given: Any) -> None:
            wanted = (given[name].to(logits.device) for name in ("words", "loss_mask", *LAST))
            totals.add_(self.preference.measure(logits.transpose(0, 1), *wanted))

        forward.passes(model, self.batches(), add, on_batch)
        *sums, count = forward.from_last_stage(totals).tolist()
        return {name: each / count for name, each in zip(self.preference.names, sums, strict=True)}

    def batches(self) -> list[dict[str, Tensor]]:
        """The batches of one measurement."""
        pairs = Pairs(self.directory, self.seq_length)
        given = references(self.log_probs, self.directory, pairs)
        part = -(-self.pairs // len(pairs.names))
        numbers = range(len(pairs.names))
        chosen = np.concatenate([pairs.usable[pairs.source[pairs.usable] == number][:part] for number in numbers])
        packed = packing.pack(pairs.lengths[chosen], self.seq_length)
        sequences = [chosen[packed[i]] for i in range(len(packed))]
        places = max(map(len, sequences))
        samples = [lay_pairs([pairs[i] for i in each], self.seq_length, places, given[each]) for each in sequences]
        # Transformer Engine takes the bounds of one sequence at a time.
        size = 1 if attention.HAVE_TE else self.batch_size
        return [batch(samples[start : start + size]) for start in range(0, len(samples), size)]
