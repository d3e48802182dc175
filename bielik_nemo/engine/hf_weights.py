"""Which Hugging Face tensors make up a Megatron parameter, and back: pure functions of tensors.

One `Layout` says how the parameters of a tensor-parallel rank are cut. Megatron interleaves the query heads of a group
with its key and value (`[q.. k v | q.. k v | ...]`), stacks gate over up, and pads the vocabulary; a Hugging Face
checkpoint does none of these. Names of both Megatron layer specs are known: the local one (`input_layernorm.weight`)
and Transformer Engine's, which fuses the norm into the next linear (`linear_qkv.layer_norm_weight`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bielik_nemo.architecture import Architecture

Read = Callable[[str, int, int, int], Tensor]
"""`read(name, dim, start, stop)`: that slice of a Hugging Face tensor along `dim`."""

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Layout:
    """The part of the model that one tensor-parallel rank holds."""

    architecture: Architecture
    tp_rank: int = 0
    tp_size: int = 1

    def part(self, total: int) -> tuple[int, int]:
        """Start and stop of this rank's share of `total` rows or columns."""
        size = total // self.tp_size
        return self.tp_rank * size, (self.tp_rank + 1) * size


def hf_names(name: str, layer: int) -> list[str]:
    """Hugging Face tensors that a Megatron parameter is made of.

    Args:
        name: Megatron's name within the model, layer index as on this pipeline rank.
        layer: the layer's index in the whole model; ignored outside the decoder layers.

    Raises:
        KeyError: the parameter has no counterpart in a dense Llama, Mistral or Qwen2 decoder.
    """
    match = _LAYER.fullmatch(name)
    if match is None:
        return {
            "embedding.word_embeddings.weight": ["model.embed_tokens.weight"],
            "decoder.final_layernorm.weight": ["model.norm.weight"],
            "output_layer.weight": ["lm_head.weight"],
        }[name]
    prefix = f"model.layers.{layer}."
    names = {
        "input_layernorm.weight": ["input_layernorm.weight"],
        "self_attention.linear_qkv.layer_norm_weight": ["input_layernorm.weight"],
        "self_attention.linear_qkv.weight": [f"self_attn.{x}_proj.weight" for x in "qkv"],
        "self_attention.linear_qkv.bias": [f"self_attn.{x}_proj.bias" for x in "qkv"],
        "self_attention.linear_proj.weight": ["self_attn.o_proj.weight"],
        "pre_mlp_layernorm.weight": ["post_attention_layernorm.weight"],
        "mlp.linear_fc1.layer_norm_weight": ["post_attention_layernorm.weight"],
        "mlp.linear_fc1.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
        "mlp.linear_fc2.weight": ["mlp.down_proj.weight"],
    }[match.group(2)]
    return [prefix + n for n in names]


def split_dim(name: str) -> int | None:
    """Dimension along which tensor parallelism cuts a Megatron parameter; None for replicated ones."""
    if "norm" in name:
        return None
    return 1 if name.endswith(("linear_proj.weight", "linear_fc2.weight")) else 0


def to_megatron(name: str, sources: list[str], read: Read, layout: Layout) -> Tensor:
    """This rank's shard of one Megatron parameter, read slice by slice.

    Padded vocabulary rows are zero.
    """
    a = layout.architecture
    if "linear_qkv" in name and "layer_norm" not in name:
        first, last = layout.part(a.num_query_groups)
        heads = a.num_attention_heads // a.num_query_groups
        rows = [heads * a.head_dim, a.head_dim, a.head_dim]
        parts = [
            read(source, 0, first * n, last * n).unflatten(0, (last - first, n))
            for source, n in zip(sources, rows, strict=True)
        ]
        return torch.cat(parts, dim=1).flatten(0, 1)
    if "linear_fc1.weight" in name:
        return torch.cat([read(source, 0, *layout.part(a.ffn_hidden_size)) for source in sources])
    (source,) = sources
    if name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        start, stop = layout.part(a.padded_vocab_size(layout.tp_size))
        rows = read(source, 0, min(start, a.vocab_size), min(stop, a.vocab_size))
        return torch.cat([rows, rows.new_zeros(stop - start - len(rows), a.hidden_size)])
    if name.endswith("linear_proj.weight"):
        return read(source, 1, *layout.part(a.num_attention_heads * a.head_dim))
    if name.endswith("linear_fc2.weight"):
        return read(source, 1, *layout.part(a.ffn_hidden_size))
    return read(source, 0, 0, a.hidden_size)


def to_hf(name: str, shards: list[Tensor], a: Architecture) -> list[Tensor]:
    """The Hugging Face tensors of one Megatron parameter, in the order of `hf_names`.

    Args:
        name: Megatron's name.
        shards: the parameter on each tensor-parallel rank, in rank order.
        a: shape of the whole model.
    """
    if "linear_qkv" in name and "layer_norm" not in name:
        heads = a.num_attention_heads // a.num_query_groups
        whole = torch.cat(shards).unflatten(0, (a.num_query_groups, (heads + 2) * a.head_dim))
        parts = whole.split([heads * a.head_dim, a.head_dim, a.head_dim], dim=1)
        return [part.flatten(0, 1).contiguous() for part in parts]
    if "linear_fc1.weight" in name:
        halves = [shard.chunk(2) for shard in shards]
        return [torch.cat([half[i] for half in halves]) for i in (0, 1)]
    dim = split_dim(name)
    if dim is None:
        return [shards[0]]
    whole = torch.cat(shards, dim=dim)
    if name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        whole = whole[: a.vocab_size]
    return [whole.contiguous()]
