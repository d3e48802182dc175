"""Where attention may go in a sequence that holds several texts: none looks at another.

Rotary positions are relative, so that each text then gives the logits that it gives alone. Megatron's own attention
takes a mask; Transformer Engine ignores masks and takes the places where texts begin, of one sequence at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bielik_nemo.engine import cpu, distributed

cpu.enable()

from nemo.collections.llm.gpt.model.base import HAVE_TE, get_packed_seq_params  # noqa: E402

KEYS = ("attention_mask", "cu_seqlens", "cu_seqlens_argmin", "max_seqlen")
"""What of a batch says where attention may go."""


def apart(starts: Sequence[int], length: int) -> dict[str, Tensor]:
    """What a sample of `length` tokens whose texts begin at `starts`, the first at 0, carries for this machine."""
    places = torch.tensor([*starts, length])
    return bounds(places) if HAVE_TE else {"attention_mask": block_mask(places)}


def block_mask(places: Tensor) -> Tensor:
    """Block-diagonal causal mask, bool `[1, s, s]`, True where a token may not look.

    Args:
        places: where texts begin and, last, s: `[texts + 1]`.
    """
    text = torch.repeat_interleave(places.diff())
    position = torch.arange(len(text))
    return ((text[:, None] != text) | (position[:, None] < position))[None]


def bounds(places: Tensor) -> dict[str, Tensor]:
    """Where the texts of a sample `[s]` begin and end, as NeMo hands it to Transformer Engine.

    Args:
        places: where texts begin and, last, s: `[texts + 1]`.

    Returns:
        `cu_seqlens` `[s + 1]` int32: the places, then -1 up to the same length for every sample; `cu_seqlens_argmin`
        `[1]`, how many of them are places; `max_seqlen` `[1]`, tokens of the longest text.
    """
    padded = torch.full((int(places[-1]) + 1,), -1, dtype=torch.int32)
    padded[: len(places)] = places
    longest = places.diff().max().to(torch.int32)
    return {"cu_seqlens": padded, "cu_seqlens_argmin": torch.tensor([len(places)]), "max_seqlen": longest.view(1)}


def of(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """What tells a model's forward pass over a batch where attention may go, on this rank's device."""
    device = distributed.device()
    if "cu_seqlens" in batch:
        return {"packed_seq_params": get_packed_seq_params({**batch, "cu_seqlens": batch["cu_seqlens"].to(device)})}
    return {"attention_mask": batch["attention_mask"].to(device)} if "attention_mask" in batch else {}
