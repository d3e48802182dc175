"""The held-out pairs on which every model of a run is measured: the same ones, in the same sequences, each time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    sources: list[str]  # names for people
    languages: list[str]  # of the sources, in their order

    def record(self, model: GPTModel) -> dict[str, Any]:
        """What is to be written down of a model: means over pairs, the loss by source and language too if several."""
        totals = self.measure(model)
        found = _means(totals)
        parts = {
            f"held_out_loss_by_{kind}": {
                name or "unnamed": _means(totals[[i for i, each in enumerate(names) if each == name]])["loss"]
                for name in dict.fromkeys(names)
            }
            for kind, names in (("source", self.sources), ("language", self.languages))
        }
        means = {f"held_out_{name}": found[name] for name in RECORDED}
        return means | {name: losses for name, losses in parts.items() if len(losses) > 1}

    def measure(self, model: GPTModel, on_batch: Callable[[], None] = lambda: None) -> Tensor:
        """Of each source the sums over its pairs that `Preference.measure` returns, fp64; the same on every rank.

        Args:
            model: this rank's part.
            on_batch: called once a batch is through.
        """
        shape = len(self.sources), len(Preference.names) + 1
        totals = torch.zeros(shape, dtype=torch.float64, device=distributed.device())

        def add(logits: Tensor, given: Any) -> None:
            wanted = (given[name].to(logits.device) for name in ("words", "loss_mask", *LAST))
            totals[given["source"]] += self.preference.measure(logits.transpose(0, 1), *wanted)

        forward.passes(model, self.batches(), add, on_batch)
        return forward.from_last_stage(totals)

    def batches(self) -> list[dict[str, Any]]:
        """The batches of one measurement; `source` is the number of the one that a batch is of."""
        pairs = Pairs(self.directory, self.seq_length)
        given = references(self.log_probs, self.directory, pairs)
        part = -(-self.pairs // len(pairs.names))
        # Transformer Engine takes the bounds of one sequence at a time.
        size, found = 1 if attention.HAVE_TE else self.batch_size, []
        for source in range(len(pairs.names)):
            chosen = pairs.usable[pairs.source[pairs.usable] == source][:part]
            packed = packing.pack(pairs.lengths[chosen], self.seq_length)
            sequences = [chosen[items] for items in packed]
            places = max(map(len, sequences), default=0)
            samples = [lay_pairs([pairs[i] for i in each], self.seq_length, places, given[each]) for each in sequences]
            parts = (samples[start : start + size] for start in range(0, len(samples), size))
            found += [batch(part) | {"source": source} for part in parts]
        return found


def _means(totals: Tensor) -> dict[str, float]:
    *sums, count = totals.sum(0).tolist()
    return {name: each / max(count, 1) for name, each in zip(Preference.names, sums, strict=True)}
