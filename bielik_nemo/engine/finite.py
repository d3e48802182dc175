"""Activations that are not numbers, named where they first appear: later, every layer and the loss has them too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bielik_nemo.errors import GateError

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel


def require(name: str, activations: Tensor) -> None:
    """Pass finite activations.

    Raises:
        GateError: with the name and what was found.
    """
    if not torch.isfinite(activations).all():
        dtype = str(activations.dtype).removeprefix("torch.")
        nan, infinite = activations.isnan().sum().item(), activations.isinf().sum().item()
        raise GateError(
            f"model.source: output of {name}: found {nan:,} NaN and {infinite:,} infinite of {activations.numel():,} "
            f"activations of a batch, allowed: none; damaged weights, or values too large for {dtype}?"
        )


@contextlib.contextmanager
def activations(model: GPTModel) -> Iterator[None]:
    """Check the outputs of the embedding and of every layer of this rank while the block runs.

    The rank that holds the first bad layer raises before it hands anything on, so the layer named is the first.

    Raises:
        GateError: with the layer's 0-based global index.
    """

    def check(name: str, out: Any) -> None:
        require(name, out[0] if isinstance(out, tuple) else out)

    named = {f"layer {layer.layer_number - 1} (counted from 0)": layer for layer in model.decoder.layers}
    if model.pre_process:
        named["the embedding"] = model.embedding
    handles = [
        module.register_forward_hook(lambda _, args, out, name=name: check(name, out)) for name, module in named.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
