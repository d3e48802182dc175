"""Samples of a training text, and what keeps the documents of a sample apart.

A sample holds whole documents and parts of them, one behind the other. With `data.separate_documents` no token attends
to a document before its own (see attention.py), and the token that ends one predicts nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bielik_nemo.engine import attention, cpu

cpu.enable()

from megatron.core.datasets.gpt_dataset import GPTDataset  # noqa: E402


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
            tokens = sample["tokens"]
            sample |= attention.bounds(torch.tensor([*starts(tokens, self.config.tokenizer.eod), len(tokens)]))
        return sample


def starts(tokens: Tensor, eod: int) -> list[int]:
    """Where the documents of a sample `[s]` begin: at 0, and behind each end-of-document token."""
    return [0, *((tokens[:-1] == eod).nonzero().flatten() + 1).tolist()]
