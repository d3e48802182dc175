"""Preference optimisation against cached references: DPO and DPO-Positive on a model that is alone in memory.

A NeMo GPT model whose loss is `losses.dpo` or `losses.dpo_positive` on the answers of packed pairs. What is handed to
Megatron is a sum over pairs and their number, so that it divides once, by the global number of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from nemo.collections.llm.gpt.model.base import gpt_data_step, gpt_forward_step
from torch import Tensor

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import convert
from bielik_nemo.engine import model as models
from bielik_nemo.engine.criterion import SumsReduction
from bielik_nemo.engine.pretraining import PretrainingModel
from bielik_nemo.errors import GateError
from bielik_nemo.losses import answer_log_probs, dpo, dpo_positive
from bielik_nemo.losses.dpo import METRICS

LAST = ("answers", "reference")
"""What of a batch only the last pipeline stage needs, beside labels and mask: the further arguments of `measure`."""


class Preference:
    """The loss of this rank's logits, and what is measured beside it.

    Args:
        loss: `plain`, or where DPO-P's penalty stands: `bielik`, `smaug`.
        beta: of the chosen answer's log-ratio.
        beta_rejected: of the rejected one's; None: beta.
        penalty: lambda.
        label_smoothing: see `losses.dpo`.
        length_normalized: whether the loss takes log-probabilities per token of an answer, not summed.
        vocab_size: true vocabulary size.
    """

    names = ("loss", *METRICS, "chosen_log_ratio_per_token", "rejected_log_ratio_per_token")
    """Of the sums that `measure` returns, without the count."""
    inputs = LAST

    def __init__(
        self,
        loss: str,
        beta: float,
        beta_rejected: float | None,
        penalty: float,
        label_smoothing: float,
        length_normalized: bool,
        vocab_size: int,
    ):
        options = {"beta": beta, "beta_rejected": beta_rejected, "label_smoothing": label_smoothing}
        self.loss = partial(dpo if loss == "plain" else partial(dpo_positive, penalty=penalty, form=loss), **options)
        self.length_normalized, self.vocab_size = length_normalized, vocab_size

    def log_probs(
        self, logits: Tensor, labels: Tensor, mask: Tensor, answers: Tensor, places: int
    ) -> tuple[Tensor, ...]:
        """Log-probability of both answers of every pair, and their tokens: two `[b, places, 2]`.

        Args:
            logits: `[s, b, v/tp]`.
            labels: Megatron's, `[b, s]`.
            mask: Megatron's, `[b, s]`.
            answers: `[b, s]`; see `preference_data.lay_pairs`.
            places: pairs that there is room for.
        """
        found = answer_log_probs(
            logits,
            *(each.transpose(0, 1) for each in (labels, mask, answers)),
            2 * places,
            vocab_size=self.vocab_size,
            tp_group=models.tp_group(),
        )
        return tuple(each.unflatten(1, (places, 2)) for each in found)

    def measure(self, logits: Tensor, labels: Tensor, mask: Tensor, answers: Tensor, reference: Tensor) -> Tensor:
        """Sums over pairs, in the order of `names`, and the number of pairs: fp32 `[len(names) + 1]`.

        Only the first, the loss, has a gradient.

        Args:
            logits: and all up to answers: see `log_probs`.
            reference: log-probabilities under the reference model `[b, places, 2]`; NaN where there is no pair.
        """
        policy, tokens = self.log_probs(logits, labels, mask, answers, reference.shape[1])
        tokens = tokens.clamp(min=1)
        by = tokens if self.length_normalized else torch.ones_like(tokens)
        given = ((policy / by).unbind(-1), (reference / by).unbind(-1))
        total, count, metrics = self.loss(*(each.flatten() for both in given for each in both))
        per_token = ((policy.detach() - reference) / tokens).nansum((0, 1))
        return torch.stack([total, *metrics.values(), *per_token, count])


class PreferenceModel(PretrainingModel):
    """A model that is trained on pairs.

    Args:
        architecture: its shape.
        preference: the loss, and what is logged beside it.
        dtype: of its parameters.
        seq_length: tokens per sample.
        recompute: which activations are computed again in the backward pass.
        hf: Hugging Face directory that it starts from; empty: it is restored from a checkpoint.
    """

    def __init__(
        self,
        architecture: Architecture,
        preference: Preference,
        dtype: str,
        seq_length: int,
        recompute: str = "none",
        hf: str = "",
        optim: Any = None,
        tokenizer: Any = None,
    ):
        super().__init__(architecture, dtype, seq_length, recompute, optim=optim, tokenizer=tokenizer)
        self.preference, self.hf = preference, hf

    def configure_model(self) -> None:
        """Build it in the trainer's layout.

        Raises:
            CheckpointError: its Hugging Face directory cannot be loaded.
        """
        if hasattr(self, "module"):
            return
        super().configure_model()
        if self.hf:
            convert.load_hf(self.module, Path(self.hf), self.architecture)
        _learn_preferences(self.module, self.preference)

    @property
    def training_loss_reduction(self) -> SumsReduction:
        """The reduction that NeMo calls after each micro-batch."""
        if not self._training_loss_reduction:
            self._training_loss_reduction = SumsReduction(lambda _, sums: sums, list(self.preference.names))
        return self._training_loss_reduction

    def step_metrics(self) -> dict[str, float]:
        """What the last step measured, of a pair in the mean; a collective of the pipeline."""
        return self.training_loss_reduction.means()

    def data_step(self, dataloader_iter: Iterator) -> dict[str, Any]:
        """NeMo's batch, on the last pipeline stage with what its loss needs."""
        batch, *_ = next(dataloader_iter)
        found = gpt_data_step(iter([batch]))
        last = parallel_state.is_pipeline_last_stage()
        return found | {name: batch[name].cuda(non_blocking=True) if last else None for name in self.preference.inputs}

    def forward_step(self, batch: dict[str, Any]) -> Tensor:
        """One micro-batch; the last pipeline stage returns the sums of `Preference.measure`."""
        wanted = tuple(batch[name] for name in ("labels", "loss_mask", *self.preference.inputs))
        return gpt_forward_step(self, batch | {"labels": wanted})


def _learn_preferences(model: GPTModel, preference: Preference) -> None:
    """Let the loss in training be the preference's, where the logits are: a wrapper copies them to fp32 on the way out.

    While training, what Megatron calls labels is the arguments of `Preference.measure` behind the logits.
    """
    measure = model.compute_language_model_loss

    def compute_language_model_loss(self: GPTModel, labels: Any, logits: Tensor) -> Tensor:
        return preference.measure(logits, *labels) if self.training else measure(labels, logits)

    model.compute_language_model_loss = MethodType(compute_language_model_loss, model)


class ReferenceGate(pl.Callback):
    """Stops a run whose first batch shows that its model is not the one that the references are of.

    Both are the same before the first update: the loss of every pair is then ln 2, and all log-ratios are 0.

    Args:
        tolerance: how far the loss may be from ln 2, and the log-ratio of a token from 0, in the mean; nats.
    """

    def __init__(self, tolerance: float):
        self.tolerance = tolerance

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        """The first step has gone forward and backward, and has changed nothing yet.

        Raises:
            GateError: on every rank alike.
        """
        if trainer.global_step:
            return
        found = module.step_metrics()
        loss = found["loss"]
        ratios = [found[f"{answer}_log_ratio_per_token"] for answer in ("chosen", "rejected")]
        off = max(abs(loss - math.log(2)), *map(abs, ratios))
        if not off <= self.tolerance:
            raise GateError(
                f"dpo: the first loss is {loss:.4f}, allowed: ln 2 = 0.6931; log-ratios per token of chosen and "
                f"rejected answers are {ratios[0]:.4f} and {ratios[1]:.4f}, allowed: 0; all to "
                f"dpo.gate_tolerance={self.tolerance:g}: the model is not the one that `reference` measured"
            )
