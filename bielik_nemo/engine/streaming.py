"""Cutting a Hugging Face checkpoint to a smaller one of the same family, tensor by tensor, without building a model.

What is cut is written in prune/kept.py. Memory holds one source tensor, its cut, and a shard of output. Files are
closed after every tensor: what has been read of a mapped file stays in memory for as long as it is open.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bielik_nemo import ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import convert, distributed
from bielik_nemo.engine.hf_reader import SafetensorsReader, check_source, expected_shapes
from bielik_nemo.prune.kept import Kept

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_AXES = {  # of a tensor's dimensions; None: stays whole
    "model.embed_tokens.weight": (None, "hidden"),
    "lm_head.weight": (None, "hidden"),
    "model.norm.weight": ("hidden",),
    "input_layernorm.weight": ("hidden",),
    "post_attention_layernorm.weight": ("hidden",),
    "self_attn.q_proj.weight": ("heads", "hidden"),
    "self_attn.q_proj.bias": ("heads",),
    "self_attn.k_proj.weight": (None, "hidden"),
    "self_attn.k_proj.bias": (None,),
    "self_attn.v_proj.weight": (None, "hidden"),
    "self_attn.v_proj.bias": (None,),
    "self_attn.o_proj.weight": ("hidden", "heads"),
    "mlp.gate_proj.weight": ("ffn", "hidden"),
    "mlp.up_proj.weight": ("ffn", "hidden"),
    "mlp.down_proj.weight": ("hidden", "ffn"),
}


def origin(name: str, kept: Kept, head_dim: int) -> tuple[str, list[list[int] | None]]:
    """Where a tensor of the cut checkpoint comes from.

    Args:
        name: Hugging Face's, in the cut model.
        kept: what stays.
        head_dim: channels of a head.

    Returns:
        Its name in the source, and for each dimension the source's indices; None: all of them.
    """
    match = _LAYER.fullmatch(name)
    layer, part = (kept.layers[int(match.group(1))], match.group(2)) if match else (-1, name)
    indices: dict[str | None, list[int] | None] = {None: None, "hidden": kept.hidden}
    if match:
        indices["ffn"] = kept.ffn[layer]
        indices["heads"] = [head * head_dim + i for head in kept.heads[layer] for i in range(head_dim)]
    return (f"model.layers.{layer}.{part}" if match else part), [indices[axis] for axis in _AXES[part]]


def cut(
    source_dir: Path,
    target_dir: Path,
    source: Architecture,
    target: Architecture,
    kept: Kept,
    dtype: str = "bfloat16",
    max_shard_gib: float = 1.0,
) -> None:
    """Write the cut checkpoint with the source's tokenizer files; `target_dir` appears only when complete.

    Args:
        source_dir: Hugging Face directory, of any size.
        target_dir: where to write; replaced if it exists.
        source: architecture of `source_dir`.
        target: architecture wanted; query groups and head_dim as in `source`.
        kept: as many units of each axis as `target` has.
        dtype: of the written tensors.
        max_shard_gib: size of an output file, in GiB, which memory holds.

    Raises:
        CheckpointError: the source is incomplete, damaged, or not of its architecture.
    """
    reader = check_source(source_dir, source)
    with distributed.whole_directory(target_dir) as partial:
        convert.write_hf(_cut_tensors(reader, target, kept), partial, target, source_dir, max_shard_gib, dtype)


def _cut_tensors(reader: SafetensorsReader, target: Architecture, kept: Kept) -> Iterator[tuple[str, Tensor]]:
    names = expected_shapes(target)
    with ui.progress("cutting", len(names)) as advance:
        for name in names:
            source_name, indices = origin(name, kept, target.head_dim)
            tensor = reader.read(source_name, 0, 0, reader.shape(source_name)[0])
            for dim, chosen in enumerate(indices):
                if chosen is not None:
                    tensor = tensor.index_select(dim, torch.tensor(chosen))
            if not any(indices):
                tensor = tensor.clone()  # read whole, it is a view of the file
            reader.close()
            yield name, tensor
            del tensor
            advance()
