"""Keys and values of what was read, and attention over them: Megatron's inference context with fewer copies.

Megatron-Core 0.15.3 keeps keys without their positions: for every token it turns the whole cache by RoPE, and its own
attention then repeats keys and values for every head of a group. Here keys are kept turned, as `[b, g, s, d]`, and
torch's attention reads them where they lie. Texts of unequal lengths end together: pads stand before the shorter ones
and nothing looks at them, which changes nothing, since rotary positions are relative.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bielik_nemo.engine import cpu

cpu.enable()

from megatron.core import parallel_state  # noqa: E402
from megatron.core.inference.contexts import StaticInferenceContext  # noqa: E402
from megatron.core.inference.model_inference_wrappers.gpt.gpt_inference_wrapper import GPTInferenceWrapper  # noqa: E402
from megatron.core.inference.model_inference_wrappers.inference_wrapper_config import (  # noqa: E402
    InferenceWrapperConfig,
)
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb  # noqa: E402

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel
    from megatron.core.transformer.attention import SelfAttention

ROOM = 256
"""Tokens by which the cache grows."""


class KVCache(StaticInferenceContext):
    """Turned keys and values of this rank's layers, `key_value_memory_dict[layer]`: two `[b, g/tp, room, d]`."""

    def append(self, layer: int, *new: Tensor) -> list[Tensor]:
        """Add keys and values `[s, b, g/tp, d]` of a layer; returns all of it, two `[b, g/tp, total, d]`."""
        start, end = self.sequence_len_offset, self.sequence_len_offset + len(new[0])
        kept = self.key_value_memory_dict.get(layer, ())
        if not kept or end > kept[0].shape[2]:
            room = min(end + ROOM, self.max_sequence_length)
            grown = [each.new_empty(each.shape[1], each.shape[2], room, each.shape[3]) for each in new]
            for old, larger in zip(kept, grown, strict=bool(kept)):
                larger[:, :, :start] = old[:, :, :start]
            kept = self.key_value_memory_dict[layer] = grown
        for memory, each in zip(kept, new, strict=True):
            memory[:, :, start:end] = each.permute(1, 2, 0, 3)
        return [memory[:, :, :end] for memory in kept]

    def repeat(self, rows: Tensor) -> None:
        """Let row i be what row `rows[i]` is; `[b]` int64."""
        for layer, kept in self.key_value_memory_dict.items():
            self.key_value_memory_dict[layer] = [memory.index_select(0, rows) for memory in kept]

    def move(self, sources: Sequence[int], targets: Sequence[int], count: int) -> None:
        """Copy some rows into the places of others, and keep the first `count`."""
        end = self.sequence_len_offset
        for layer, kept in self.key_value_memory_dict.items():
            for memory in kept:
                memory[targets, :, :end] = memory[sources, :, :end]
            self.key_value_memory_dict[layer] = [memory[:count] for memory in kept]


class CachedReader:
    """A model that reads texts on and on, whatever its layout: what it has read stays in a `KVCache`.

    Args:
        model: this rank's part, in evaluation mode.
        lengths: tokens of each text at first, without the pads before the shorter ones.
        room: tokens that may follow.
    """

    def __init__(self, model: GPTModel, lengths: Sequence[int], room: int):
        self.model, self.window = model, model.config.window_size
        self.cache = KVCache(len(lengths), max(lengths) + room)
        self.pads = max(lengths) - torch.tensor(lengths, device=next(model.parameters()).device)
        config = InferenceWrapperConfig(
            hidden_size=model.config.hidden_size,
            params_dtype=model.config.params_dtype,
            inference_batch_times_seqlen_threshold=-1,
            padded_vocab_size=model.vocab_size,
            fp32_residual_connection=model.config.fp32_residual_connection,
        )
        self.wrapper = GPTInferenceWrapper(model, config, self.cache)

    def read(self, tokens: Tensor) -> Tensor | None:
        """Logits `[b, v]` after the last of tokens `[b, s]`, of all columns, on the last pipeline stage; else None."""
        start = self.cache.sequence_len_offset
        places = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        inputs = {"tokens": tokens, "position_ids": places.expand_as(tokens), "attention_mask": self._visible(places)}
        # The first pass makes the rotary embedding, and collectives their buffers, on a device that they name.
        alone = torch.distributed.get_world_size(parallel_state.get_model_parallel_group()) == 1
        with attention(self.model), cpu.unwatched() if alone and start > 0 else contextlib.nullcontext():
            # What run_one_forward_step calls, but for torch.inference_mode: Megatron keeps rotary embeddings from here
            # for training.
            logits = self.wrapper.forward_pass_with_pipeline_parallel_small_input_batch(inputs)
        return None if logits is None else logits[:, -1]

    def repeat(self, rows: Sequence[int]) -> None:
        """Let text i go on from what text `rows[i]` is."""
        index = torch.tensor(rows, device=self.pads.device)
        self.pads = self.pads[index]
        self.cache.repeat(index)

    def move(self, sources: Sequence[int], targets: Sequence[int], count: int) -> None:
        """Let some texts take the places of others, and only the first `count` go on."""
        self.pads[targets] = self.pads[sources]
        self.pads = self.pads[:count]
        self.cache.move(sources, targets, count)

    def _visible(self, places: Tensor) -> Tensor | None:
        """Which tokens those at `places` `[s]` may look at, `[b, 1, s, total]`; None: one that sees all."""
        if len(places) == 1 and self.window is None and not self.pads.any():
            return None
        keys = torch.arange(int(places[-1]) + 1, device=places.device)
        behind = places[:, None] - keys
        seen = behind >= 0
        if self.window is not None:
            seen &= behind <= self.window[0]
        # A pad sees itself: attention to nothing is not a number.
        return (seen & ((keys >= self.pads[:, None, None]) | (behind == 0))).unsqueeze(1)


@contextlib.contextmanager
def attention(model: GPTModel) -> Iterator[None]:
    """Let the model's layers keep and read a `KVCache`, for the time of the block."""
    layers = [layer.self_attention for layer in model.decoder.layers]
    for layer in layers:
        layer._adjust_key_value_for_inference = MethodType(_keep, layer)
        layer.core_attention.forward = _attend
    try:
        yield
    finally:
        for layer in layers:
            del layer._adjust_key_value_for_inference, layer.core_attention.forward


def _keep(
    self: SelfAttention, cache: KVCache, query: Tensor, key: Tensor, value: Tensor, positions: Any, *_: Any, **__: Any
) -> tuple:
    """Instead of `Attention._adjust_key_value_for_inference`: keys are turned before they are kept."""
    own = positions[0][cache.sequence_len_offset : cache.sequence_len_offset + len(key)]
    key = apply_rotary_pos_emb(key, own, config=self.config, cp_group=self.pg_collection.cp)
    keys, values = cache.append(self.layer_number, key, value)
    return query, keys, values, (own, None), self.attn_mask_type, None


def _attend(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, **_: Any) -> Tensor:
    """Attention of queries `[s, b, n/tp, d]` to keys and values `[b, g/tp, total, d]`; returns `[s, b, n/tp * d]`."""
    s, b, heads, d = query.shape
    if s == 1:  # the heads that share a key are queries of one text: nothing is repeated for them
        query = query.view(b, keys.shape[1], heads // keys.shape[1], d)
        return scaled_dot_product_attention(query, keys, values, attn_mask=visible).reshape(1, b, heads * d)
    found = scaled_dot_product_attention(query.permute(1, 2, 0, 3), keys, values, attn_mask=visible, enable_gqa=True)
    return found.permute(2, 0, 1, 3).reshape(s, b, heads * d)
