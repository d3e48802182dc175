"""Reinforcement learning on answers that the model itself has sampled: its loss, where NeMo's trainer takes it.

The model is `PreferenceModel` with another loss: what is handed to Megatron is a sum over answers and their number, so
that it divides once, by the number of answers of all micro-batches and data-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bielik_nemo.engine import model as models
from bielik_nemo.engine.preference import PreferenceModel
from bielik_nemo.losses import grpo, token_log_probs
from bielik_nemo.losses.grpo import METRICS


class Policy:
    """The loss of this rank's logits, and what is measured beside it.

    Args:
        vocab_size: true vocabulary size.
        temperature: at which answers are sampled; log-probabilities are those of logits divided by it.
        settings: of `losses.grpo`.
    """

    names = ("loss", *METRICS)
    """Of the sums that `measure` returns, without the count."""
    inputs = ("answers", "old", "reference", "advantage", "share")

    def __init__(self, vocab_size: int, temperature: float, **settings: Any):
        self.vocab_size, self.temperature, self.settings = vocab_size, temperature, settings

    def log_probs(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Log-probability of every label, in nats: logits `[s, b, v/tp]`, labels `[s, b]` -> `[s, b]`."""
        tempered = logits if self.temperature == 1 else logits / self.temperature
        return token_log_probs(tempered, labels, vocab_size=self.vocab_size, tp_group=models.tp_group())

    def measure(
        self,
        logits: Tensor,
        labels: Tensor,
        mask: Tensor,
        answers: Tensor,
        old: Tensor,
        reference: Tensor,
        advantage: Tensor,
        share: Tensor,
    ) -> Tensor:
        """Sums in the order of `names`, and the number of answers: fp32 `[len(names) + 1]`.

        Only the first, the loss, has a gradient.

        Args:
            logits: `[s, b, v/tp]`.
            labels: Megatron's, `[b, s]`.
            mask: Megatron's, `[b, s]`.
            answers: and all up to advantage: `[b, s]`; see `policy_data.lay_answers`.
            share: `[b]`, of the update's answers those that are in it: the loss is divided by all of them.
        """
        policy = self.log_probs(logits, labels.transpose(0, 1))
        given = (each.transpose(0, 1) for each in (old, reference, advantage, mask, answers))
        total, count, metrics = grpo(policy, *given, **self.settings)
        return torch.stack([total * share[0], *metrics.values(), count])


class PolicyModel(PreferenceModel):
    """A model that is trained on its own answers; see `PreferenceModel` for its arguments."""

    rollout: dict[str, float] = {}
    """What is to be told of the newest rollout."""

    @property
    def tokens(self) -> int:
        """Of text, that have been trained on so far, prompts among them."""
        return self.trainer.datamodule.tokens

    def step_metrics(self) -> dict[str, float]:
        """The loss of an answer in the mean, of a token what is measured beside it, and what the rollout was like."""
        found = self.training_loss_reduction.totals()
        loss, count, tokens = (found.pop(name) for name in ("loss", "count", "tokens"))
        means = {name: each / max(tokens, 1) for name, each in found.items()}
        return {"loss": loss / max(count, 1), **means, **self.rollout}

    def data_step(self, dataloader_iter: Iterator) -> dict[str, Any]:
        """The next micro-batch of this update, whose number is all that is drawn."""
        return super().data_step(self.trainer.datamodule.micro_batches(dataloader_iter))
