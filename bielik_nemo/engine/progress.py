"""What is seen of a training run: `metrics.jsonl`, a progress bar, and the student's loss on the held-out tokens.

Only the held-out loss and a module's `step_metrics` communicate, on every rank alike. NeMo's own progress printer calls
collectives on rank 0 only and so hangs gloo groups (nemo 2.7.3).
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from bielik_nemo import ui
from bielik_nemo.artifacts import write_text
from bielik_nemo.engine.datasets import HeldOut
from bielik_nemo.errors import GateError


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
        tokens_per_step: global batch size times sequence length.
        log_every: steps between two training records.
        validate_every: steps between two measurements on held-out tokens; also before the first and after the last.
        held_out: those tokens.
    """

    def __init__(self, path: str, tokens_per_step: int, log_every: int, validate_every: int, held_out: HeldOut):
        self.path = Path(path)
        self.tokens_per_step = tokens_per_step
        self.log_every, self.validate_every = log_every, validate_every
        self.held_out = held_out
        self.open = contextlib.ExitStack()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Open the bar; on resume keep the records of finished steps only; measure an untrained student."""
        step = trainer.global_step
        kept = [record for record in read(self.path) if 0 < step >= record["step"]]
        self.start = time.monotonic() - max((record["seconds"] for record in kept), default=0.0)
        self.mark, self.marked = time.monotonic(), step
        if trainer.is_global_zero:
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self.advance = self.open.enter_context(ui.progress("distilling", trainer.max_steps, step))
        if step == 0:
            self._validate(trainer, module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Record one step in `log_every` and the last; measure one in `validate_every` and the last.

        Raises:
            GateError: the loss is not finite.
        """
        step, last = trainer.global_step, trainer.global_step == trainer.max_steps
        loss = float(trainer.callback_metrics["reduced_train_loss"])
        # Only the first and the last pipeline stage know the loss; one of them is enough to stop all.
        if not math.isfinite(loss):
            raise GateError(f"distill: the loss is {loss} at step {step}; lower optim.lr, or look at the text")
        if step % self.log_every == 0 or last:
            now = time.monotonic()
            rate = (step - self.marked) * self.tokens_per_step / max(now - self.mark, 1e-9)
            self.mark, self.marked = now, step
            self._record(
                trainer,
                **{"loss": loss} | getattr(module, "step_metrics", dict)(),
                lr=trainer.optimizers[0].param_groups[0]["lr"],
                grad_norm=float(trainer.callback_metrics.get("grad_norm", math.nan)),
                tokens_per_second=round(rate, 1),
            )
            self.info = f"loss {loss:.3f}  {rate:.0f} tokens/s"
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
        loss, losses = self.held_out.measure(module.core_module)
        by_language = {"held_out_loss_by_language": losses} if len(losses) > 1 else {}
        self._record(trainer, held_out_loss=loss, **by_language)
        self.mark, self.marked = time.monotonic(), trainer.global_step  # not training: left out of the rate

    def _record(self, trainer: pl.Trainer, **values: Any) -> None:
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        seconds = round(time.monotonic() - self.start, 2)
        record = {"step": step, **values, "tokens": step * self.tokens_per_step, "seconds": seconds}
        with open(self.path, "a") as stream:
            stream.write(json.dumps(record) + "\n")
