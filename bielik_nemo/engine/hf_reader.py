"""A Hugging Face checkpoint as a source of slices: which tensors it must hold, and reading parts of them.

Nothing is read before it is asked for, so that a rank touches only its own share of a checkpoint of any size.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from bielik_nemo.architecture import Architecture
from bielik_nemo.errors import CheckpointError

INDEX = "model.safetensors.index.json"


class SafetensorsReader:
    """Slices of the tensors of a Hugging Face directory, one file or many.

    Raises:
        CheckpointError: no safetensors, a file is missing or truncated, a tensor is missing or has another shape.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        if (directory / INDEX).is_file():
            try:
                files = json.loads((directory / INDEX).read_text())["weight_map"]
                if not all(isinstance(file, str) for file in files.values()):
                    raise ValueError("a file name is not a string")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{directory / INDEX}: not a safetensors index ({error})") from None
        elif (directory / "model.safetensors").is_file():
            files = dict.fromkeys(self._open("model.safetensors").keys(), "model.safetensors")
        else:
            raise CheckpointError(f"{directory}: holds neither model.safetensors nor {INDEX}")
        self._files: dict[str, str] = files
        self._opened: dict[str, object] = {}

    def _open(self, name: str):
        path = self.directory / name
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: missing, truncated or not a safetensors file ({error})") from None

    def names(self) -> set[str]:
        """All tensors of the checkpoint."""
        return set(self._files)

    def check_files(self) -> None:
        """Open every file once, so that a truncated last shard is found before any work."""
        for name in sorted(set(self._files.values())):
            self._opened[name] = self._open(name)

    def shape(self, name: str) -> list[int]:
        """Shape of one tensor."""
        return self._slice(name).get_shape()

    def read(self, name: str, dim: int, start: int, stop: int) -> Tensor:
        """Rows or columns `start:stop` of one tensor."""
        part = self._slice(name)
        if part.get_shape()[dim] < stop:
            raise CheckpointError(
                f"{self.directory / self._files[name]}: {name} has shape {part.get_shape()}, "
                f"config.json wants at least {stop} along dimension {dim}"
            )
        return part[start:stop] if dim == 0 else part[:, start:stop]

    def close(self) -> None:
        """Let go of all files: what was read of a file counts as this process's memory for as long as it is open.

        Tensors that were read and not copied keep theirs open.
        """
        self._opened.clear()

    def _slice(self, name: str):
        if name not in self._files:
            raise CheckpointError(f"{self.directory}: tensor {name} is missing")
        file = self._files[name]
        if file not in self._opened:
            self._opened[file] = self._open(file)
        try:
            return self._opened[file].get_slice(name)
        except SafetensorError as error:
            raise CheckpointError(f"{self.directory / file}: {error}") from None


def expected_shapes(a: Architecture) -> dict[str, tuple[int, ...]]:
    """Every tensor of a Hugging Face checkpoint of this architecture, with its shape."""
    q, kv = a.num_attention_heads * a.head_dim, a.num_query_groups * a.head_dim
    layer = {
        "input_layernorm.weight": (a.hidden_size,),
        "self_attn.q_proj.weight": (q, a.hidden_size),
        "self_attn.k_proj.weight": (kv, a.hidden_size),
        "self_attn.v_proj.weight": (kv, a.hidden_size),
        "self_attn.o_proj.weight": (a.hidden_size, q),
        "post_attention_layernorm.weight": (a.hidden_size,),
        "mlp.gate_proj.weight": (a.ffn_hidden_size, a.hidden_size),
        "mlp.up_proj.weight": (a.ffn_hidden_size, a.hidden_size),
        "mlp.down_proj.weight": (a.hidden_size, a.ffn_hidden_size),
    }
    if a.qkv_bias:
        layer |= {"self_attn.q_proj.bias": (q,), "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,)}
    shapes = {"model.embed_tokens.weight": (a.vocab_size, a.hidden_size), "model.norm.weight": (a.hidden_size,)}
    if not a.tie_embeddings:
        shapes["lm_head.weight"] = (a.vocab_size, a.hidden_size)
    for i in range(a.num_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def check_source(directory: Path, a: Architecture) -> SafetensorsReader:
    """Open a Hugging Face checkpoint and compare its tensors with its configuration, before anything is built.

    Raises:
        CheckpointError: a file cannot be read, or a tensor is missing, unexpected or of another shape.
    """
    reader = SafetensorsReader(directory)
    reader.check_files()
    expected = expected_shapes(a)
    missing = sorted(set(expected) - reader.names())
    if missing:
        raise CheckpointError(f"{directory}: {len(missing)} tensors are missing, first {missing[0]}")
    # A tied checkpoint may repeat its embedding as lm_head; rotary buffers of old checkpoints are not weights.
    unexpected = sorted(
        n for n in reader.names() - set(expected) if not n.endswith("rotary_emb.inv_freq") and n != "lm_head.weight"
    )
    if unexpected:
        raise CheckpointError(
            f"{directory}: {len(unexpected)} tensors have no place in this architecture, first {unexpected[0]}"
        )
    for name, shape in expected.items():
        if tuple(reader.shape(name)) != shape:
            raise CheckpointError(f"{directory}: {name} has shape {reader.shape(name)}, config.json says {list(shape)}")
    return reader
