"""Hugging Face safetensors <-> Megatron, on a model that is spread over any tensor and pipeline layout.

Both directions go tensor by tensor: import reads only the slice that this rank holds, export gathers one parameter at a
time and writes a shard as soon as it is full, so that neither needs the whole model twice.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import checkpoint, distributed
from bielik_nemo.engine.hf_reader import INDEX, check_source, expected_shapes
from bielik_nemo.engine.hf_weights import Layout, hf_names, to_hf, to_megatron
from bielik_nemo.engine.model import DTYPES
from bielik_nemo.errors import CheckpointError

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def parameters(model: GPTModel) -> Iterator[tuple[str, int, Tensor]]:
    """Name, global layer index and value of every parameter that this rank holds."""
    for name, parameter in model.named_parameters():
        layer = -1
        if name.startswith("decoder.layers."):
            layer = model.decoder.layers[int(name.split(".")[2])].layer_number - 1
        yield name, layer, parameter


@torch.no_grad()
def load_hf(model: GPTModel, directory: Path, a: Architecture) -> None:
    """Fill this rank's part of a Megatron model from a Hugging Face directory.

    Raises:
        CheckpointError: see `check_source`.
    """
    from megatron.core import parallel_state

    reader = check_source(directory, a)
    layout = Layout(
        a, parallel_state.get_tensor_model_parallel_rank(), parallel_state.get_tensor_model_parallel_world_size()
    )
    for name, layer, parameter in parameters(model):
        # With tied embeddings the last pipeline stage holds a copy of the embedding as its output layer.
        source = "embedding.word_embeddings.weight" if a.tie_embeddings and name == "output_layer.weight" else name
        value = to_megatron(source, hf_names(source, layer), reader.read, layout)
        if value.shape != parameter.shape:
            raise CheckpointError(
                f"{directory}: {name} becomes {list(value.shape)}, the model has {list(parameter.shape)}"
            )
        parameter.copy_(value)


def load_stage(model: GPTModel, directory: Path, a: Architecture) -> None:
    """Fill this rank's part of a model with the weights that a stage left in its directory, in either format.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    if (directory / "hf").is_dir():  # cut by streaming
        load_hf(model, directory / "hf", a)
    else:
        checkpoint.load(model, directory / "megatron")


@torch.no_grad()
def gathered_hf_tensors(model: GPTModel, a: Architecture) -> Iterator[tuple[str, Tensor]]:
    """Every Hugging Face tensor of a spread model, whole and on the CPU of rank 0, one after another.

    All ranks must iterate; ranks other than 0 get empty tensors. Collectives per parameter: one gather within a tensor
    parallel group, and one send to rank 0 from pipeline stages other than the first.
    """
    from megatron.core import parallel_state

    group = parallel_state.get_tensor_model_parallel_group()
    tp = parallel_state.get_tensor_model_parallel_world_size()
    pp_rank = parallel_state.get_pipeline_model_parallel_rank()
    rank = distributed.rank()
    mine = [
        (name, hf_names(name, layer), parameter)
        for name, layer, parameter in parameters(model)
        if not (a.tie_embeddings and name == "output_layer.weight")
    ]
    stages: list = [None] * parallel_state.get_pipeline_model_parallel_world_size()
    torch.distributed.all_gather_object(
        stages, [names for _, names, _ in mine], group=parallel_state.get_pipeline_model_parallel_group()
    )
    sources = torch.distributed.get_process_group_ranks(parallel_state.get_pipeline_model_parallel_group())
    leader = parallel_state.get_data_parallel_rank() == 0 and parallel_state.get_tensor_model_parallel_rank() == 0
    shapes = expected_shapes(a)
    for stage, held in enumerate(stages):
        for position, names in enumerate(held):
            tensors: list[Tensor] = []
            if stage == pp_rank:
                name, _, parameter = mine[position]
                shards = [torch.empty_like(parameter) for _ in range(tp)]
                torch.distributed.all_gather(shards, parameter.contiguous(), group=group)
                tensors = to_hf(name, shards, a)
            if stage > 0 and leader and (rank == 0 or stage == pp_rank):
                like = next(model.parameters())
                for i, hf_name in enumerate(names):
                    if rank == 0:
                        tensors.append(like.new_empty(shapes[hf_name]))
                        torch.distributed.recv(tensors[i], src=sources[stage])
                    else:
                        torch.distributed.send(tensors[i].contiguous(), dst=0)
            for i, hf_name in enumerate(names):
                yield hf_name, tensors[i].cpu() if rank == 0 else torch.empty(0)


def save_hf(
    model: GPTModel,
    directory: Path,
    a: Architecture,
    tokenizer: Path | None = None,
    max_shard_gib: float = 4.0,
    dtype: str = "float32",
) -> None:
    """Write a spread Megatron model as a Hugging Face directory; `directory` appears only when complete.

    Args:
        model: this rank's part.
        directory: where to write; replaced if it exists.
        a: shape of the whole model.
        tokenizer: directory whose tokenizer files are copied along; None: none.
        max_shard_gib: size of a safetensors file, in GiB.
        dtype: of the written tensors.

    Raises:
        CheckpointError: a tensor of the architecture was not written, or one more than it has.
    """
    with distributed.whole_directory(directory) as partial:
        write_hf(gathered_hf_tensors(model, a), partial, a, tokenizer, max_shard_gib, dtype)


def write_hf(
    tensors: Iterator[tuple[str, Tensor]],
    directory: Path,
    a: Architecture,
    tokenizer: Path | None,
    max_shard_gib: float,
    dtype: str,
) -> None:
    """Write tensors into a Hugging Face directory, on rank 0; see `save_hf`.

    Args:
        tensors: Hugging Face names and values; all ranks go through them.
        directory: an empty one.
        a: shape of the whole model.
        tokenizer: as in `save_hf`.
        max_shard_gib: as in `save_hf`.
        dtype: of the written tensors.
    """
    files, total = _write_shards(tensors, directory, int(max_shard_gib * 2**30), DTYPES[dtype])
    if distributed.rank() != 0:
        return
    written = [name for names in files for name in names]
    expected = expected_shapes(a)
    if sorted(written) != sorted(expected):
        odd = sorted(set(written) ^ set(expected)) or sorted({n for n in written if written.count(n) > 1})
        raise CheckpointError(
            f"{directory}: export wrote {len(written)} tensors of {len(expected)}; first odd one {odd[0]}"
        )
    _name_shards(directory, files, total)
    config = a.to_hf() | {"torch_dtype": dtype} | _token_ids(tokenizer)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    copy_tokenizer(tokenizer, directory)


def _write_shards(
    tensors: Iterator[tuple[str, Tensor]], directory: Path, max_bytes: int, dtype: torch.dtype
) -> tuple[list[list[str]], int]:
    """Write numbered shards on rank 0; returns the names in each, and the bytes of all."""
    files: list[list[str]] = []
    shard: dict[str, Tensor] = {}
    total = size = 0

    def flush() -> None:
        save_file(shard, directory / f"shard-{len(files)}.safetensors", metadata={"format": "pt"})
        files.append(list(shard))
        shard.clear()

    for name, tensor in tensors:
        if distributed.rank() != 0:
            continue
        nbytes = tensor.numel() * dtype.itemsize
        if shard and size + nbytes > max_bytes:
            flush()
            size = 0
        shard[name] = tensor.to(dtype).contiguous()
        size, total = size + nbytes, total + nbytes
    if shard:
        flush()
    return files, total


def _name_shards(directory: Path, files: list[list[str]], total: int) -> None:
    """Give the numbered shards the names that transformers looks for, with an index where there are several."""
    if len(files) == 1:
        os.replace(directory / "shard-0.safetensors", directory / "model.safetensors")
        return
    weight_map = {}
    for i, names in enumerate(files):
        name = f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        os.replace(directory / f"shard-{i}.safetensors", directory / name)
        weight_map |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _token_ids(source: Path | None) -> dict:
    """Special token ids that the source's config.json names; the architecture does not carry them."""
    if source is None or not (source / "config.json").is_file():
        return {}
    config = json.loads((source / "config.json").read_text())
    return {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}


def copy_tokenizer(source: Path | None, target: Path) -> None:
    """Copy the tokenizer's files, where there are any."""
    for name in TOKENIZER_FILES if source is not None else ():
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
