"""Supervised fine-tuning: a model learns the answers of conversations, each token with a weight.

    L = sum_t w_t (-log p(y_t)) / N        (weighted instruction cross-entropy, arXiv 2410.18565)

N counts, over the whole global batch, the tokens with a weight above 0 (`tokens`) or adds up their weights (`weights`);
Bielik's trainer has both. With weights of 1 they are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from bielik_nemo.architecture import Architecture
from bielik_nemo.config_align import LoRA
from bielik_nemo.engine import convert, lora, schedules
from bielik_nemo.engine.criterion import HUNDREDTHS, SumsReduction
from bielik_nemo.engine.pretraining import PretrainingModel


class SFTModel(PretrainingModel):
    """A model that is trained on `loss_mask`, the weight of each label.

    Args:
        architecture: its shape.
        dtype: of its parameters.
        seq_length: tokens per sample.
        normalization: what a batch's loss is divided by: `tokens`, `weights`.
        recompute: which activations are computed again in the backward pass.
        origin: directory of the stage whose model it starts from; empty: it is restored from a checkpoint.
        lora: adapters that are trained instead of it; None: none. They need its `origin`.
        seed: of the adapters.
    """

    def __init__(
        self,
        architecture: Architecture,
        dtype: str,
        seq_length: int,
        normalization: str = "tokens",
        recompute: str = "none",
        origin: str = "",
        lora: LoRA | None = None,
        seed: int = 0,
        optim: Any = None,
        tokenizer: Any = None,
    ):
        super().__init__(architecture, dtype, seq_length, recompute, optim=optim, tokenizer=tokenizer)
        self.normalization, self.origin = normalization, origin
        self.lora, self.seed = lora, seed

    def configure_model(self) -> None:
        """Build it in the trainer's layout.

        Raises:
            CheckpointError: what it starts from cannot be loaded.
        """
        if hasattr(self, "module"):
            return
        super().configure_model()
        if self.origin:
            convert.load_stage(self.module, Path(self.origin), self.architecture)
        if self.lora:
            lora.add(self.module, self.lora, self.seed)

    @property
    def training_loss_reduction(self) -> SumsReduction:
        """The reduction that NeMo calls after each micro-batch."""
        if not self._training_loss_reduction:
            parts = HUNDREDTHS if self.normalization == "weights" else 1
            self._training_loss_reduction = SumsReduction(self._measure, ["loss", "trained"], parts)
        return self._training_loss_reduction

    def _measure(self, batch: dict[str, Tensor], losses: Tensor) -> Tensor:
        """Weighted sum of the losses `[b, s]`, trained tokens, and what the sum is divided by: fp32 `[3]`."""
        weights = batch["loss_mask"]
        trained = (weights > 0).sum()
        count = trained if self.normalization == "tokens" else weights.sum()
        return torch.stack([(losses * weights).sum(), trained, count])

    def trained_tokens(self) -> float:
        """Tokens that the newest batch trains, over all ranks; a collective of the pipeline."""
        return self.training_loss_reduction.totals()["trained"]

    def step_metrics(self) -> dict[str, float]:
        """What the last step measured; a collective of the pipeline."""
        found = self.training_loss_reduction.totals()
        return {"loss": found["loss"] / found["count"], "trained_tokens": found["trained"]}


class AdaptiveRate(pl.Callback):
    """Scales the scheduled learning rate of every step by sqrt(T / BS), T being its batch's trained tokens.

    Args:
        reference_tokens: BS; see `schedules.adaptive`.
    """

    def __init__(self, reference_tokens: int):
        self.reference_tokens = reference_tokens

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        """Gradients are there, and with them T; the schedule then sets the next step's rate anew."""
        factor = schedules.adaptive(1.0, module.trained_tokens(), self.reference_tokens)
        for group in optimizer.param_groups:
            group["lr"] *= factor
