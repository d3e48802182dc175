"""Samples of a training text, and what keeps the documents of a sample apart.

A sample holds whole documents and parts of them, one behind the other. With `data.separate_documents` no token attends
to a document before its own, and the token that ends one predicts nothing. Rotary positions are relative, so that each
document then gives the logits that it gives alone. Megatron's own attention takes a mask; Transformer Engine ignores
masks and takes the places where documents begin, of one sequence at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from bielik_nemo.engine import cpu, distributed

cpu.enable()

from megatron.core.datasets.gpt_dataset import GPTDataset  # noqa: E402
from nemo.collections.llm.gpt.model.base import get_packed_seq_params  # noqa: E402


class TextDataset(GPTDataset):
    """Megatron's samples of whole documents, in which no token is padding.

    Megatron takes the tokenizer's pad token for padding wherever it stands: out of the loss, and read as token 0. Many
    tokenizers pad with their end-of-text token, which ends every document here; samples are never short (megatron-core
    0.15.3).
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._pad_token_id = -1

    def __getitem__(self, idx: int | None) -> dict[str, Tensor]:
        """A sample; for Transformer Engine with the bounds of its documents where these are to be kept apart."""
        sample = super().__getitem__(idx)
        if self.config.reset_attention_mask and not self.config.create_attention_mask:
            sample |= document_bounds(sample["tokens"], self.config.tokenizer.eod)
        return sample


def document_bounds(tokens: Tensor, eod: int) -> dict[str, Tensor]:
    """Where the documents of a sample `[s]` begin and end, as NeMo hands it to Transformer Engine.

    Returns:
        `cu_seqlens` `[s + 1]` int32: 0, the place behind each end-of-document token, and s, then -1 up to the same
        length for every sample; `cu_seqlens_argmin` `[1]`, how many of them are places; `max_seqlen` `[1]`, tokens of
        the longest document.
    """
    ends = (tokens[:-1] == eod).nonzero().flatten() + 1
    places = torch.cat([ends.new_zeros(1), ends, ends.new_tensor([len(tokens)])])
    padded = torch.full((len(tokens) + 1,), -1, dtype=torch.int32)
    padded[: len(places)] = places
    longest = places.diff().max().to(torch.int32)
    return {"cu_seqlens": padded, "cu_seqlens_argmin": torch.tensor([len(places)]), "max_seqlen": longest.view(1)}


def attention(samples: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
    """What tells a model's forward pass over these samples, as one batch, where attention may go."""
    batch = default_collate(list(samples))
    device = distributed.device()
    if "cu_seqlens" in batch:
        return {"packed_seq_params": get_packed_seq_params({**batch, "cu_seqlens": batch["cu_seqlens"].to(device)})}
    return {"attention_mask": batch["attention_mask"].to(device)}
