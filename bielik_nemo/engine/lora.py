"""Low-rank adapters (arXiv 2106.09685): y = W x + alpha / rank * B A x, of which only A and B are trained.

The layers are those of NeMo's PEFT, under every layout. Its callback is not used: adapters are there from the start, so
that checkpoints have them and resume as any other's do, and what a stage leaves is a plain model (see
`checkpoint.save`). In nemo 2.7.3

- the wrapper writes a layer's own names, and does not read them;
- `LoRAMerge` multiplies one rank's parts of A and B, which under tensor parallelism do not belong together;
- A is drawn for each rank, with a spread that depends on how many there are;
- without Transformer Engine `LoRA` compares layers with classes that are not there.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from nemo.collections.llm.gpt.model.base import HAVE_TE
from nemo.collections.llm.peft import lora as peft
from nemo.collections.llm.peft import utils as peft_utils
from torch import Tensor

from bielik_nemo.config_align import LoRA

if not HAVE_TE:
    peft.te = SimpleNamespace(Linear=None)
    peft_utils.HAVE_TE = False


def add(model: GPTModel, settings: LoRA, seed: int) -> None:
    """Freeze a model and put adapters beside its linear layers; it says what it said before, since B is zero.

    Args:
        model: this rank's part.
        settings: of the adapters.
        seed: of A, whose values are the same under every layout.
    """
    model.requires_grad_(False)
    lora = peft.LoRA(target_modules=settings.targets, dim=settings.rank, alpha=settings.alpha, dropout=settings.dropout)
    for name, module in list(model.named_modules()):
        prefix, _, last = name.rpartition(".")
        wrapped = lora.transform(module, last, prefix)
        if wrapped is not module:
            setattr(model.get_submodule(prefix), last, wrapped)
            wrapped.register_load_state_dict_pre_hook(_own_names)
    for name, layer in layers(model):
        _, _, index, part = name.split(".", 3)  # decoder.layers.0.mlp.linear_fc1
        number = model.decoder.layers[int(index)].layer_number
        _draw(layer.adapter.linear_in.weight, zlib.crc32(f"{seed} {number} {part}".encode()))
    if model.pre_process:
        # Layers that are computed again in the backward pass are so only if something before them has a gradient.
        model.embedding.register_forward_hook(lambda module, inputs, output: output.requires_grad_())


def layers(model: GPTModel) -> Iterator[tuple[str, peft.LoRALinear]]:
    """The layers with an adapter, by the names that the linear layers had."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, peft.LoRALinear))


def merged(model: GPTModel, state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """A model's sharded state with its adapters added to the weights; the model stays as it is.

    Collectives: one gather per adapter within the tensor-parallel group.

    Args:
        model: this rank's part, with adapters or without.
        state: of it; its entries are changed.
        prefix: of the names in it.
    """
    for name, layer in layers(model):
        weight = state[f"{prefix}{name}.weight"]
        weight.data = (weight.data.float() + change(layer)).to(weight.data.dtype)
    return {key: value for key, value in state.items() if ".adapter." not in key}


@torch.no_grad()
def change(layer: peft.LoRALinear) -> Tensor:
    """alpha / rank * B A, the part of it that this rank has of W: fp32 `[out/tp, in]` or `[out, in/tp]`.

    Both matrices are cut: where this rank has some rows of W, A by its own rows; where it has some columns, B.
    """
    adapter = layer.adapter
    a, b = adapter.linear_in.weight.float(), adapter.linear_out.weight.float()
    a, b = (a, _gathered(b)) if adapter.input_is_parallel else (_gathered(a), b)
    return adapter.alpha / adapter.dim * b @ a


def _gathered(part: Tensor) -> Tensor:
    """The rows of all tensor-parallel ranks."""
    parts = [torch.empty_like(part) for _ in range(parallel_state.get_tensor_model_parallel_world_size())]
    torch.distributed.all_gather(parts, part.contiguous(), group=parallel_state.get_tensor_model_parallel_group())
    return torch.cat(parts)


@torch.no_grad()
def _draw(part: Tensor, seed: int) -> None:
    """Fill this rank's part of A from the whole matrix (Xavier), drawn on the CPU."""
    shape, dim = list(part.shape), part.partition_dim
    count, rank = (getattr(parallel_state, f"get_tensor_model_parallel_{name}")() for name in ("world_size", "rank"))
    shape[dim] *= count
    whole = torch.nn.init.xavier_normal_(torch.empty(shape), generator=torch.Generator().manual_seed(seed))
    part.copy_(whole.chunk(count, dim)[rank])


def _own_names(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let a wrapper read what it writes: `linear_qkv.weight`, where torch looks for `linear_qkv.to_wrap.weight`."""
    for key in [key for key in state if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        if not name.startswith(("adapter.", "to_wrap.")):
            state[f"{prefix}to_wrap.{name}"] = state.pop(key)
