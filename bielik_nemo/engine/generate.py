"""Greedy continuation on Megatron-Core's own inference context (KV cache), for one pipeline stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel


@torch.no_grad()
def greedy(model: GPTModel, prompt: list[int], new_tokens: int, vocab_size: int, stop: int | None = None) -> list[int]:
    """Most likely continuation of a prompt; the same on every tensor-parallel rank.

    Args:
        model: this rank's part; pipeline parallel size 1.
        prompt: token ids, at least one.
        new_tokens: how many to add at most.
        vocab_size: true vocabulary size; padding is never chosen.
        stop: token that ends the continuation and is left out; None: none does.
    """
    from megatron.core.inference.contexts import StaticInferenceContext

    training = model.training
    model.eval()
    device = next(model.parameters()).device
    context = StaticInferenceContext(max_batch_size=1, max_sequence_length=len(prompt) + new_tokens)
    tokens = torch.tensor([prompt], device=device)
    out: list[int] = []
    position = 0
    while len(out) < new_tokens:
        positions = torch.arange(position, position + tokens.shape[1], device=device).unsqueeze(0)
        logits = model(tokens, positions, None, inference_context=context, runtime_gather_output=True)
        token = int(logits[0, -1, :vocab_size].argmax())
        if token == stop:
            break
        out.append(token)
        position += tokens.shape[1]
        context.sequence_len_offset = position
        context.enable_decode_mode()
        tokens = torch.tensor([[token]], device=device)
    model.train(training)
    return out
