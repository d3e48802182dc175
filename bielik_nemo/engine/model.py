"""Megatron models from an `Architecture`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import cpu

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel
    from nemo.collections.llm import GPTConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def gpt_config(
    architecture: Architecture, *, tp: int = 1, pp: int = 1, dtype: str = "float32", seq_length: int | None = None
) -> GPTConfig:
    """NeMo's configuration of this decoder, with every fusion that the machine has.

    Args:
        architecture: the decoder's shape.
        tp: tensor parallel size.
        pp: pipeline parallel size.
        dtype: of parameters and of what travels between pipeline stages.
        seq_length: longest sequence of a training batch; None: the model's context.
    """
    cpu.enable()
    from nemo.collections.llm.gpt.model.base import HAVE_TE, GPTConfig
    from nemo.collections.llm.gpt.model.llama import Llama31Config

    return (Llama31Config if architecture.rope_scaling else GPTConfig)(
        **architecture.gpt_config_kwargs(seq_length, tp),
        activation_func=torch.nn.functional.silu,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        params_dtype=DTYPES[dtype],
        pipeline_dtype=DTYPES[dtype],
        bf16=dtype == "bfloat16",
        bias_activation_fusion=HAVE_TE,
        bias_dropout_fusion=HAVE_TE,
        masked_softmax_fusion=HAVE_TE,
        apply_rope_fusion=HAVE_TE,
        persist_layer_norm=HAVE_TE,
        # Losses are sums; Megatron divides their gradient once, by the global number of counted tokens.
        calculate_per_token_loss=True,
    )


def build(config: GPTConfig) -> GPTModel:
    """This rank's part of the model, randomly initialised, on this rank's device."""
    return config.configure_model(tokenizer=None).to(torch.cuda.current_device())


def unwrap(model: Any) -> Any:
    """The Megatron model inside Lightning's, DDP's and precision wrappers."""
    while hasattr(model, "module"):
        model = model.module
    return model
