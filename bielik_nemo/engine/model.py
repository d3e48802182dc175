"""Megatron models from an `Architecture`."""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import cpu
from bielik_nemo.losses.cross_entropy import token_cross_entropy

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel
    from nemo.collections.llm import GPTConfig

RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective"},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def gpt_config(
    architecture: Architecture,
    *,
    tp: int = 1,
    pp: int = 1,
    dtype: str = "float32",
    seq_length: int | None = None,
    fused: bool = True,
    recompute: str = "none",
) -> GPTConfig:
    """NeMo's configuration of this decoder, with every fusion that the machine has.

    Args:
        architecture: the decoder's shape.
        tp: tensor parallel size.
        pp: pipeline parallel size.
        dtype: of parameters and of what travels between pipeline stages.
        seq_length: longest sequence of a training batch; None: the model's context.
        fused: False for Megatron's own layers also where there is Transformer Engine, which joins a norm to the linear
            layer behind it: Model Optimizer knows them apart only. Checkpoints are the same.
        recompute: which activations are computed again in the backward pass, a key of `RECOMPUTE`.
    """
    cpu.enable()
    from nemo.collections.llm.gpt.model.base import HAVE_TE, GPTConfig, default_layer_spec, local_layer_spec
    from nemo.collections.llm.gpt.model.llama import Llama31Config

    return (Llama31Config if architecture.rope_scaling else GPTConfig)(
        **architecture.gpt_config_kwargs(seq_length, tp),
        **RECOMPUTE[recompute],
        activation_func=torch.nn.functional.silu,
        transformer_layer_spec=default_layer_spec if fused else local_layer_spec,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        params_dtype=DTYPES[dtype],
        pipeline_dtype=DTYPES[dtype],
        bf16=dtype == "bfloat16",
        bias_activation_fusion=HAVE_TE and fused,
        bias_dropout_fusion=HAVE_TE and fused,
        masked_softmax_fusion=HAVE_TE and fused,
        apply_rope_fusion=HAVE_TE and fused,
        persist_layer_norm=HAVE_TE and fused,
        # Losses are sums; Megatron divides their gradient once, by the global number of counted tokens.
        calculate_per_token_loss=True,
    )


def tp_group() -> ProcessGroup | None:
    """The tensor-parallel group, or None where the vocabulary is not sharded (no collectives then)."""
    from megatron.core import parallel_state

    if parallel_state.get_tensor_model_parallel_world_size() == 1:
        return None
    return parallel_state.get_tensor_model_parallel_group()


def use_padding_free_loss(model: GPTModel, architecture: Architecture, skip_in_training: bool = False) -> None:
    """Let a model's language-model loss be `losses.token_cross_entropy`, which leaves the padded vocabulary out.

    Args:
        model: this rank's part.
        architecture: of the whole model.
        skip_in_training: return zeros while training, where another loss reads the logits.
    """

    def compute_language_model_loss(self: GPTModel, labels: Tensor, logits: Tensor) -> Tensor:
        if skip_in_training and self.training:
            return torch.zeros_like(labels, dtype=logits.dtype)
        losses = token_cross_entropy(
            logits, labels.transpose(0, 1), vocab_size=architecture.vocab_size, tp_group=tp_group()
        )
        return losses.transpose(0, 1).contiguous()

    model.compute_language_model_loss = MethodType(compute_language_model_loss, model)


def build(config: GPTConfig, architecture: Architecture) -> GPTModel:
    """This rank's part of the model, randomly initialised, on this rank's device."""
    model = config.configure_model(tokenizer=None).to(torch.cuda.current_device())
    use_padding_free_loss(model, architecture)
    return model


@torch.no_grad()
def round_parameters(model: GPTModel, dtype: str) -> None:
    """Round every parameter to a dtype while keeping its own, so that storing it in that dtype loses nothing more."""
    for parameter in model.parameters():
        parameter.copy_(parameter.to(DTYPES[dtype]))


def cast(model: GPTModel, dtype: str) -> GPTModel:
    """The model with its parameters in a dtype, for saving."""
    return model.to(DTYPES[dtype])
