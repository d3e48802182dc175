"""Importance of layers by what the model loses without them.

The loss increase of a block is the mean cross-entropy on calibration text with its layers left out, each the identity,
minus that of the whole model, in nats per token. Single layers: arXiv 2407.14679, section 2.2 (there as perplexity).
Contiguous blocks: arXiv 2408.11796, where the best block to drop is not made of the layers that are best dropped alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bielik_nemo import ui
from bielik_nemo.engine import forward

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel


def _identity(hidden_states: Tensor, context: Tensor | None = None, **_: Any) -> tuple[Tensor, Tensor | None]:
    return hidden_states, context


@contextlib.contextmanager
def left_out(model: GPTModel, layers: Collection[int]) -> Iterator[None]:
    """Make layers the identity while the block runs; 0-based global indices, each acts where its layer is."""
    mine = [layer for layer in model.decoder.layers if layer.layer_number - 1 in layers]
    for layer in mine:
        layer.forward = _identity
    try:
        yield
    finally:
        for layer in mine:
            del layer.forward  # the class's own shows again


def loss_increases(
    model: GPTModel, num_layers: int, tokens: Tensor, lengths: Sequence[int], batch_size: int
) -> dict[int, Tensor]:
    """Loss increase of every contiguous block of each length, with progress shown; the same on every rank.

    Args:
        model: this rank's part.
        num_layers: of the whole model.
        tokens: `[n, s]`; the first s - 1 of each sample predict their successors.
        lengths: block lengths n, each below `num_layers`.
        batch_size: samples in a forward pass.

    Returns:
        By length, `[num_layers - n + 1]` in nats per token, float64: the block that begins at each layer.
    """
    blocks = [range(first, first + n) for n in sorted(set(lengths)) for first in range(num_layers - n + 1)]
    if not blocks:
        return {}
    passes = -(-len(tokens) // batch_size)
    increases: dict[int, list[float]] = {}
    with ui.progress("loss without layers", (1 + len(blocks)) * passes) as advance:
        whole = forward.held_out_loss(model, tokens, batch_size, advance)
        for block in blocks:
            with left_out(model, block):
                loss = forward.held_out_loss(model, tokens, batch_size, advance)
            increases.setdefault(len(block), []).append(loss - whole)
    return {length: torch.tensor(values, dtype=torch.float64) for length, values in increases.items()}
