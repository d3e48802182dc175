"""Continued pre-training: a model learns the next token of the text, by cross-entropy and nothing else.

NeMo's own GPT model and its own reduction, which hands Megatron a sum and a token count. Only the loss of each token is
ours (`losses.token_cross_entropy`): the padded vocabulary never counts.
"""

from __future__ import annotations

from typing import Any

from megatron.core.models.gpt import GPTModel
from nemo.collections import llm
from nemo.utils.model_utils import unwrap_model

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import model as models
from bielik_nemo.engine.outermost import freeze_within


class PretrainingModel(llm.GPTModel):
    """A model that is restored from a checkpoint and trained on.

    Args:
        architecture: its shape.
        dtype: of its parameters.
        seq_length: tokens per sample.
        recompute: which activations are computed again in the backward pass.
        boundary_layers: so many of the lowest and of the highest layers are trained, with both embedding matrices,
            and nothing else; None: everything is.
    """

    def __init__(
        self,
        architecture: Architecture,
        dtype: str,
        seq_length: int,
        recompute: str = "none",
        boundary_layers: int | None = None,
        optim: Any = None,
        tokenizer: Any = None,
    ):
        config = models.gpt_config(architecture, dtype=dtype, seq_length=seq_length, recompute=recompute)
        super().__init__(config, optim=optim, tokenizer=tokenizer)
        self.architecture, self.boundary_layers = architecture, boundary_layers

    def configure_model(self) -> None:
        """Build it in the trainer's layout."""
        if not hasattr(self, "module"):
            self.config.vocab_size = self.architecture.padded_vocab_size(self.config.tensor_model_parallel_size)
            self.module = models.build(self.config, self.architecture)
            if self.boundary_layers is not None:
                freeze_within(self.module, self.architecture.num_layers, self.boundary_layers)

    @property
    def core_module(self) -> GPTModel:
        """This rank's part without wrappers."""
        return unwrap_model(self.module)
