"""What preference optimisation changed: a model and the reference that it was held to, on the same held-out pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bielik_nemo.engine import distributed, forward
from bielik_nemo.engine import model as models
from bielik_nemo.losses import forward_kl

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

    from bielik_nemo.engine.held_out_pairs import HeldOutPairs

TOLD = ("accuracy", "margin", "chosen_log_ratio", "rejected_log_ratio")
"""What is told of all that the loss measures."""


def measure(
    model: GPTModel,
    pairs: HeldOutPairs,
    reference: GPTModel | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Means over pairs, and over the tokens of their answers; the same on every tensor-parallel rank.

    Args:
        model: this rank's part; pipeline parallel size 1.
        pairs: with their log-probabilities under the reference.
        reference: this rank's part of it, beside the model in memory; None: the model is the reference.
        on_batch: called once a batch is through.

    Returns:
        `likelier`, the share of pairs whose chosen answer is likelier than the rejected one. With a reference also what
        `TOLD` names, and `kl`, the mean over tokens of KL(reference || model) on the whole vocabulary, in nats.
    """
    preference, device = pairs.preference, distributed.device()
    likelier = torch.zeros(2, dtype=torch.float64, device=device)
    kl, sums = likelier.clone(), torch.zeros(len(preference.names) + 1, dtype=torch.float64, device=device)
    for batch in pairs.batches():
        given = [batch[name].to(device) for name in ("words", "loss_mask", "answers", "reference")]
        logits = _logits(model, batch)
        likelier += _likelier(*preference.log_probs(logits, *given[:3], given[3].shape[1]))
        if reference is not None:
            sums += preference.measure(logits, *given)
            shared = {"vocab_size": preference.vocab_size, "tp_group": models.tp_group()}
            kl += torch.stack(forward_kl(logits, _logits(reference, batch), given[1].T, **shared))
        on_batch()
    found = {"likelier": (likelier[0] / likelier[1]).item()}
    if reference is not None:
        means = dict(zip(preference.names, (sums[:-1] / sums[-1]).tolist(), strict=True))
        found |= {name: means[name] for name in TOLD} | {"kl": (kl[0] / kl[1]).item()}
    return found


def _logits(model: GPTModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits `[s, b, v/tp]`."""
    (found,) = forward.passes(model, [batch], lambda logits, _: logits.transpose(0, 1))
    return found


def _likelier(log_probs: Tensor, tokens: Tensor) -> Tensor:
    """How many pairs have the chosen answer likelier, and how many there are: `[2]`, of two `[b, pairs, 2]`."""
    there = (tokens > 0).all(-1)
    return torch.stack([((log_probs[..., 0] > log_probs[..., 1]) & there).sum(), there.sum()])
