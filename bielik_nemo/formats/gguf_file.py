"""A Hugging Face directory as a GGUF file, llama.cpp's container: weights in float16, norms and biases in float32.

float16 whatever the weights are stored in: it holds all of bfloat16's mantissa, every backend of llama.cpp computes
with it, and the formats that are made of it round far more coarsely. A weight beyond its range is refused.

llama.cpp turns pairs of neighbouring channels for RoPE where Hugging Face pairs those half a head apart, so that the
rows of Llama's query and key projections are put in another order; Qwen2's are not, whose kind of RoPE llama.cpp has
too. Tensors are written one after another: memory holds one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bielik_nemo import ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.engine.hf_reader import check_source, expected_shapes
from bielik_nemo.errors import GateError
from bielik_nemo.formats.gguf_vocabulary import Vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter

ROPE_FACTORS = "rope_freqs.weight"


def write(source: Path, path: Path, a: Architecture, vocabulary: Vocabulary, pre: str) -> None:
    """Write the whole model; `path` exists afterwards even if it is only half written.

    Args:
        source: Hugging Face directory.
        path: of the file.
        a: shape of the model.
        vocabulary: its tokenizer.
        pre: llama.cpp's name of the rule that cuts text into words.

    Raises:
        CheckpointError: a tensor is missing or of another shape.
        GateError: a weight is beyond float16.
    """
    from gguf import LlamaFileType

    reader = check_source(source, a)
    names, shapes = gguf_names(a), expected_shapes(a)
    factors = {ROPE_FACTORS: rope_factors(a)} if a.rope_scaling else {}
    writer = head(path, a, vocabulary, pre)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    for name, factor in factors.items():
        writer.add_tensor_info(name, factor.shape, factor.numpy().dtype, factor.numpy().nbytes)
    for name, shape in shapes.items():
        like = torch.empty(0, dtype=_stored(shape)).numpy()
        size = torch.Size(shape).numel() * like.itemsize
        writer.add_tensor_info(names[name], shape, like.dtype, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for factor in factors.values():
        writer.write_tensor_data(factor.numpy())
    with ui.progress("writing GGUF", len(shapes)) as advance:
        for name, shape in shapes.items():
            weight = in_order(name, reader.read(name, 0, 0, shape[0]), a).to(_stored(shape))
            if not torch.isfinite(weight).all():
                raise GateError(f"{source}: {name} has weights beyond float16, in which gguf formats are written")
            writer.write_tensor_data(weight.contiguous().numpy())
            reader.close()
            advance()
    writer.close()


def write_vocabulary(path: Path, a: Architecture, vocabulary: Vocabulary, pre: str) -> None:
    """Write a file without weights, enough for llama.cpp to tokenise."""
    writer = head(path, a, vocabulary, pre)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def head(path: Path, a: Architecture, vocabulary: Vocabulary, pre: str) -> GGUFWriter:
    """A writer that knows all about the model but its tensors."""
    import gguf

    writer = gguf.GGUFWriter(path, _family(a))
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(a.num_layers)
    # llama.cpp lets Mistral's tokens see all before them, which is the same thing as long as there are no more.
    writer.add_context_length(min(a.max_position_embeddings, a.sliding_window or a.max_position_embeddings))
    writer.add_embedding_length(a.hidden_size)
    writer.add_feed_forward_length(a.ffn_hidden_size)
    writer.add_head_count(a.num_attention_heads)
    writer.add_head_count_kv(a.num_query_groups)
    writer.add_key_length(a.head_dim)  # llama.cpp would take hidden_size / num_attention_heads
    writer.add_value_length(a.head_dim)
    writer.add_rope_dimension_count(a.head_dim)
    writer.add_rope_freq_base(a.rotary_base)
    writer.add_layer_norm_rms_eps(a.norm_epsilon)
    writer.add_vocab_size(a.vocab_size)
    vocabulary.add_to(writer, pre)
    return writer


def gguf_names(a: Architecture) -> dict[str, str]:
    """Name in GGUF of every Hugging Face tensor."""
    import gguf

    family = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == _family(a))
    table = gguf.get_tensor_name_map(family, a.num_layers)
    return {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in expected_shapes(a)}


def in_order(name: str, weight: Tensor, a: Architecture) -> Tensor:
    """A Hugging Face tensor with its rows in llama.cpp's order.

    Row i of the first half of a head and row i of the second become rows 2i and 2i + 1; biases `[rows]` alike.
    """
    part = name.split(".")[-2]
    if _family(a) == "qwen2" or part not in ("q_proj", "k_proj"):
        return weight
    halves = weight.unflatten(0, (-1, 2, a.head_dim // 2))  # [heads, 2, head_dim / 2, ...]
    return halves.transpose(1, 2).flatten(0, 2)


def rope_factors(a: Architecture) -> Tensor:
    """By how much each frequency of llama3's scaled RoPE is divided, `[head_dim / 2]`, as transformers computes it."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = AutoConfig.for_model(**a.to_hf())
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = a.rotary_base ** (-torch.arange(0, a.head_dim, 2, dtype=torch.float64) / a.head_dim)
    return (plain / scaled).float()


def _family(a: Architecture) -> str:
    """llama.cpp's name: Mistral is Llama to it."""
    return "qwen2" if a.model_type == "qwen2" else "llama"


def _stored(shape: tuple[int, ...]) -> torch.dtype:
    return torch.float16 if len(shape) > 1 else torch.float32


def matrices(a: Architecture) -> Iterator[str]:
    """Hugging Face names of the matrices inside layers."""
    for name, shape in expected_shapes(a).items():
        if name.startswith("model.layers.") and len(shape) > 1:
            yield name
