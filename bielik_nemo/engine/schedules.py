"""The learning rate of every step, through NeMo's schedulers.

In step t = 0, 1, ... of T, with w steps of warm-up the rate is lr (t + 1) / (w + 1) up to t = w; after that

    cosine    min_lr + (lr - min_lr) (1 + cos(pi (t - w) / (T - w))) / 2
    wsd       lr, and in the last d steps lr - (lr - min_lr) (t - (T - d)) / d
    constant  lr
"""

from __future__ import annotations

import math
from typing import Any

import nemo_run as run
from nemo import lightning as nl
from nemo.core.optim.lr_scheduler import WarmupHoldAnnealLinear
from nemo.lightning.pytorch.optim.base import LRSchedulerModule

from bielik_nemo.config_training import Optim


def adaptive(lr: float, tokens: float, reference_tokens: int | None) -> float:
    """Bielik's adaptive learning rate, lr * sqrt(T / BS) (arXiv 2410.18565 equation 1); None: `lr` as it is.

    Args:
        lr: for batches of the reference size.
        tokens: that the loss of this batch counts.
        reference_tokens: of the reference batch.
    """
    return lr if reference_tokens is None else lr * math.sqrt(tokens / reference_tokens)


def schedule(optim: Optim, max_steps: int, min_lr: float) -> run.Config[LRSchedulerModule]:
    """The schedule of a run of `max_steps` steps that ends at `min_lr`; the optimiser brings the peak."""
    common = {"max_steps": max_steps, "warmup_steps": optim.warmup_steps, "min_lr": min_lr}
    if optim.schedule == "wsd":
        return run.Config(WarmupStableDecay, decay_steps=optim.decay_steps, **common)
    if optim.schedule == "constant":
        return run.Config(nl.lr_scheduler.WarmupPolicyScheduler, **common)
    return run.Config(nl.lr_scheduler.CosineAnnealingScheduler, constant_steps=0, **common)


class WarmupStableDecay(LRSchedulerModule):
    """NeMo's `WarmupHoldAnnealLinear` in numbers of steps; NeMo's module for it takes parts of the run (nemo 2.7.3)."""

    def __init__(self, max_steps: int, warmup_steps: int, decay_steps: int, min_lr: float):
        super().__init__()
        self.max_steps, self.warmup_steps, self.decay_steps, self.min_lr = max_steps, warmup_steps, decay_steps, min_lr

    def scheduler(self, model: Any, optimizer: Any) -> dict[str, Any]:
        """What Lightning wants to know of a schedule that moves on with every step."""
        found = WarmupHoldAnnealLinear(
            optimizer,
            max_steps=self.max_steps,
            warmup_steps=self.warmup_steps,
            hold_steps=self.max_steps - self.warmup_steps - self.decay_steps,
            min_lr=self.min_lr,
        )
        timing = {"scheduler": found, "interval": "step", "frequency": 1}
        return {"optimizer": optimizer, "lr_scheduler": timing, "monitor": "val_loss"}
