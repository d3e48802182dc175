"""What is seen of a training run: `metrics.jsonl`, a progress bar, and the student's loss on the held-out tokens.

The held-out loss, a module's `step_metrics` and saving the best student communicate, on every rank alike; NeMo's own
progress printer calls collectives on rank 0 only and so hangs gloo groups (nemo 2.7.3).
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl

from bielik_nemo import ui
from bielik_nemo.artifacts import write_text
from bielik_nemo.engine import best, memory

_SPELT = {
    "loss": "loss {:.3f}",
    "reward": "reward {:.3f}",
    "agreement": "agreement {:.1%}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.0%}",
    "grad_norm": "norm {:.2f}",
    "lr": "lr {:.1e}",
}
"""What of a record stands beside the progress bar, in this order."""


class HeldOutSet(Protocol):
    """Something that a model is measured on: text, answers, pairs, tasks."""

    def record(self, model: Any) -> dict[str, Any]:
        """What is written down of this rank's part of a model, `held_out_loss` among it, or `held_out_reward`; the same
        on every rank."""


def read(path: Path) -> list[dict[str, Any]]:
    """The whole records of a metrics file; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def last_step(path: Path) -> dict[str, Any]:
    """The newest training record of a metrics file; empty where there is none."""
    return next((record for record in reversed(read(path)) if "loss" in record), {})


class TrainingProgress(pl.Callback):
    """Progress bar and metrics of a training run.

    Args:
        path: of `metrics.jsonl`; a resumed run appends, after dropping what it will do again.
        tokens_per_step: of text, in the mean; where steps differ much, the module's `tokens` so far are taken.
        log_every: steps between two training records.
        validate_every: steps between two measurements on held-out tokens; also before the first and after the last.
        held_out: what is measured then; a best model has the lowest `held_out_loss`, or the highest `held_out_reward`.
        peak: tokens per second at the devices' full speed, of which MFU is a share; 0: not known.
        best: directory for the weights of the lowest held-out loss; empty: they are not kept.
    """

    def __init__(
        self,
        path: str,
        tokens_per_step: int,
        log_every: int,
        validate_every: int,
        held_out: HeldOutSet,
        peak: float = 0.0,
        best: str = "",
    ):
        self.path, self.best = Path(path), best
        self.tokens_per_step, self.peak = tokens_per_step, peak
        self.log_every, self.validate_every = log_every, validate_every
        self.held_out = held_out
        self.open = contextlib.ExitStack()

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        """Measure memory from before the model is built."""
        memory.start()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Open the bar; on resume keep the records of finished steps only; measure an untrained student."""
        step = trainer.global_step
        kept = [record for record in read(self.path) if 0 < step >= record["step"]]
        self.start = time.monotonic() - max((record["seconds"] for record in kept), default=0.0)
        self._mark(step, module)
        if trainer.is_global_zero:
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self.advance = self.open.enter_context(ui.progress(self.path.parent.name, trainer.max_steps, step))
        if step == 0:
            self._validate(trainer, module)

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Any) -> None:
        """Note the rate that is used; after the step the schedule has set the next one."""
        self.lr = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Record one step in `log_every` and the last; measure one in `validate_every` and the last."""
        step, last = trainer.global_step, trainer.global_step == trainer.max_steps
        if step % self.log_every == 0 or last:
            rate = (self._tokens(step, module) - self.marked) / max(time.monotonic() - self.mark, 1e-9)
            self._mark(step, module)
            loss = float(trainer.callback_metrics["reduced_train_loss"])
            measured = {"loss": loss} | getattr(module, "step_metrics", dict)()
            measured["lr"] = self.lr
            measured["grad_norm"] = float(trainer.callback_metrics.get("grad_norm", math.nan))
            measured["tokens_per_second"] = round(rate, 1)
            measured["peak_memory_gib"] = round(memory.fullest() / 2**30, 3)
            if self.peak:
                measured["mfu"] = round(rate / self.peak, 4)
            self._record(trainer, module, **measured)
            self.info = "  ".join(form.format(measured[key]) for key, form in _SPELT.items() if key in measured)
        self.advance(getattr(self, "info", ""))
        if step % self.validate_every == 0 or last:
            self._validate(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Close the bar."""
        self.open.close()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self.open.close()

    def _validate(self, trainer: pl.Trainer, module: Any) -> None:
        measured = self.held_out.record(module.core_module)
        self._record(trainer, module, **measured)
        if self.best and trainer.global_step:
            loss = measured["held_out_loss"] if "held_out_loss" in measured else -measured["held_out_reward"]
            best.keep(module.core_module, Path(self.best), trainer.global_step, loss)
        self._mark(trainer.global_step, module)  # not training: left out of the rate

    def _tokens(self, step: int, module: Any) -> int:
        return getattr(module, "tokens", step * self.tokens_per_step)

    def _mark(self, step: int, module: Any) -> None:
        self.mark, self.marked = time.monotonic(), self._tokens(step, module)

    def _record(self, trainer: pl.Trainer, module: Any, **values: Any) -> None:
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        seconds = round(time.monotonic() - self.start, 2)
        record = {"step": step, **values, "tokens": self._tokens(step, module), "seconds": seconds}
        with open(self.path, "a") as stream:
            stream.write(json.dumps(record) + "\n")
