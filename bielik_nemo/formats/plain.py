"""The exported model by plain transformers: its loss, and how much each input of its matrices carries.

What a GGUF file calls the importance matrix is the mean square of each input channel of a matrix over calibration
tokens: the error of a weight counts as much as what it is multiplied with.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from bielik_nemo.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model, on the GPU where there is one.

    Raises:
        CheckpointError: transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, torch_dtype=dtype, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise CheckpointError(f"{directory}: transformers cannot load it ({error})") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


@torch.no_grad()
def loss(model: PreTrainedModel, blocks: Tensor, on_block: Callable[[], None] = lambda: None) -> float:
    """Mean cross-entropy in nats per token.

    Args:
        model: as `load` gives it, or with other weights.
        blocks: token ids `[n, s + 1]`, each row a context of its own.
        on_block: called once a row is through.
    """
    total = 0.0
    for block in blocks.to(model.device):
        logits = model(block[None, :-1], use_cache=False).logits[0].float()
        total += functional.cross_entropy(logits, block[1:], reduction="sum").item()
        on_block()
    return total / blocks[:, 1:].numel()


@torch.no_grad()
def importance(
    model: PreTrainedModel, tokens: Tensor, on_sample: Callable[[], None] = lambda: None
) -> dict[str, Tensor]:
    """Mean squared inputs `[columns]` of every matrix inside the layers, by its Hugging Face name, float32 on the CPU.

    Args:
        model: as `load` gives it.
        tokens: calibration samples, ids `[n, s]`.
        on_sample: called once a sample is through.
    """
    sums: dict[str, Tensor] = {}

    def counting(name: str) -> Callable[..., None]:
        def add(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            squares = inputs[0].flatten(0, -2).double().square().sum(0)
            sums[name] = sums[name] + squares if name in sums else squares

        return add

    linear = {name: part for name, part in model.model.layers.named_modules() if isinstance(part, torch.nn.Linear)}
    hooks = [part.register_forward_pre_hook(counting(f"model.layers.{name}.weight")) for name, part in linear.items()]
    try:
        for sample in tokens.to(model.device):
            model.model(sample[None], use_cache=False)
            on_sample()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (value / tokens.numel()).float().cpu() for name, value in sums.items()}
