"""Which token comes next: drawn from logits by one number of a counter-based generator.

The inverse of the cumulative distribution is taken at that number, in float64: one number for each token, whatever the
vocabulary. It is a function of seed, key, sample and place alone (Philox, Salmon et al. 2011: a place is a counter, so
that there is no state), which is why an answer depends neither on the batch that it is drawn in nor on the layout.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bielik_nemo.engine.rollout import Sampling


class Drawn(NamedTuple):
    """Tokens `[b]` int64, and the log-probability of each `[b]` fp64, in nats."""

    tokens: Tensor
    log_probs: Tensor


def noise(seed: int, key: int, sample: int, count: int) -> np.ndarray:
    """The first `count` numbers in [0, 1) of an answer, fp64 `[count]`; more of them begin with the same."""
    words = np.array([number % 2**64 for number in (seed, key, 0, 0, 0, sample)], np.uint64)
    return np.random.Generator(np.random.Philox(key=words[:2], counter=words[2:])).random(count)


def draw(logits: Tensor, numbers: Tensor, sampling: Sampling) -> Drawn:
    """One token for each row.

    Args:
        logits: `[b, v]`, without padding.
        numbers: in [0, 1), fp64 `[b]`; at temperature 0 they decide nothing.
        sampling: temperature, top_k and top_p. top_p counts among what top_k leaves.

    Returns:
        Tokens, and their log-probabilities under softmax(logits / temperature) over all words.
    """
    scaled = logits.float() / (sampling.temperature or 1.0)
    highest = scaled.amax(-1, keepdim=True)
    weights = (scaled - highest).exp_()
    total = weights.sum(-1, dtype=torch.float64)
    if sampling.temperature == 0:
        tokens = scaled.argmax(-1)
    else:
        cumulative = restricted(weights, sampling.top_k, sampling.top_p).cumsum(-1, dtype=torch.float64)
        # Below the last sum, also where rounding would reach it, so that there is a sum above.
        end = cumulative[:, -1]
        wanted = torch.minimum(numbers * end, end.nextafter(torch.zeros_like(end)))
        tokens = torch.searchsorted(cumulative, wanted.unsqueeze(-1), right=True).squeeze(-1)
    chosen = (scaled.gather(-1, tokens.unsqueeze(-1)) - highest).squeeze(-1)
    return Drawn(tokens, chosen.double() - total.log())


def restricted(weights: Tensor, top_k: int, top_p: float) -> Tensor:
    """Weights `[b, v]` with 0 for what may not be drawn.

    Args:
        weights: in proportion to the probabilities.
        top_k: how many of the likeliest may be; more where the last ones are equal; 0: all.
        top_p: of those, as many of the likeliest as have this share of their probability together, at least one; 1:
            all.
    """
    if 0 < top_k < weights.shape[-1]:
        weights = weights.masked_fill(weights < weights.topk(top_k, -1).values[:, -1:], 0)
    if top_p < 1:
        ordered, places = weights.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1, dtype=torch.float64) - ordered
        ordered = ordered.masked_fill(before >= top_p * ordered.sum(-1, keepdim=True, dtype=torch.float64), 0)
        weights = torch.zeros_like(weights).scatter_(-1, places, ordered)
    return weights
