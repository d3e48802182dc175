"""The pass of a reference model over preference pairs: two numbers for each pair, from which DPO trains without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bielik_nemo.data import packing
from bielik_nemo.engine import attention, distributed, forward
from bielik_nemo.engine.preference import Preference
from bielik_nemo.engine.preference_data import Pairs, batch, lay_pairs
from bielik_nemo.errors import GateError

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel


def batches(pairs: Pairs, micro_batch_size: int) -> list[list[np.ndarray]]:
    """The usable pairs by sequence, and the sequences by forward pass; the same on every rank."""
    packed = packing.pack(pairs.lengths[pairs.usable], pairs.seq_length)
    sequences = [pairs.usable[items] for items in packed]
    # Transformer Engine takes the bounds of one sequence at a time.
    size = 1 if attention.HAVE_TE else micro_batch_size
    return [sequences[start : start + size] for start in range(0, len(sequences), size)]


def measure(
    model: GPTModel,
    preference: Preference,
    pairs: Pairs,
    work: list[list[np.ndarray]],
    on_batch: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Log-probabilities of both answers of every pair `[n, 2]`, in nats; the same on every rank.

    Args:
        model: this rank's part of the reference.
        preference: the loss that they are for.
        pairs: NaN for those of them that are not usable.
        work: `batches`, which data-parallel ranks share.
        on_batch: called once a forward pass is through.

    Raises:
        GateError: one of them is not finite; on every rank.
    """
    from megatron.core import parallel_state

    found = torch.zeros(len(pairs), 2, dtype=torch.float64, device=distributed.device())
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    first = parallel_state.get_tensor_model_parallel_rank() == 0
    places = max((len(each) for sequences in work for each in sequences), default=0)

    def keep(logits: Tensor, given: Any) -> None:
        wanted = (given[name].to(logits.device) for name in ("words", "loss_mask", "answers"))
        sums, _ = preference.log_probs(logits.transpose(0, 1), *wanted, places)
        if first:  # of the ranks that have the same numbers
            for numbers, each in zip(given["pairs"], sums, strict=True):
                found[torch.from_numpy(numbers)] = each[: len(numbers)].double()

    def laid(sequences: list[np.ndarray]) -> dict[str, Any]:
        rows = [lay_pairs([pairs[i] for i in each.tolist()], pairs.seq_length, places) for each in sequences]
        return batch(rows) | {"pairs": sequences}

    forward.passes(model, map(laid, work[rank::size]), keep, on_batch)
    if distributed.world_size() > 1:
        torch.distributed.all_reduce(found)
    values = found.cpu().numpy()
    bad = np.setdiff1d(pairs.usable, np.isfinite(values).all(1).nonzero()[0])
    if len(bad):
        raise GateError(
            f"reference: the log-probabilities of {len(bad):,} pairs are not finite, of pair {bad[0]} first"
        )
    values[np.setdiff1d(np.arange(len(pairs)), pairs.usable)] = np.nan
    return values.astype(np.float32)
