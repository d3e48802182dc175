"""What is seen of a training run: `metrics.jsonl` and a progress bar, written by rank 0 without any communication.

NeMo's own progress printer calls collectives on rank 0 only and so hangs gloo groups (nemo 2.7.3).
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bielik_nemo.errors import GateError


def last_step(path: Path) -> dict[str, Any]:
    """The newest training record of a metrics file; empty where there is none."""
    if not path.is_file():
        return {}
    records = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return next((r for r in reversed(records) if "loss" in r), {})


class TrainingProgress(pl.Callback):
    """Progress bar and metrics of a training run.

    Args:
        path: of `metrics.jsonl`; a resumed run appends, after dropping what it will do again.
        tokens_per_step: global batch size times sequence length.
        log_every: steps between two records.
    """

    def __init__(self, path: str, tokens_per_step: int, log_every: int):
        self.path = Path(path)
        self.tokens_per_step = tokens_per_step
        self.log_every = log_every
        self.seconds_before = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Open the bar; on resume keep the records of finished steps only."""
        self.start = self.mark = time.monotonic()
        self.first = self.marked = trainer.global_step
        if not trainer.is_global_zero:
            return
        kept = []
        if self.path.is_file():
            lines = [line for line in self.path.read_text().splitlines() if line.endswith("}")]
            kept = [r for r in map(json.loads, lines) if r["step"] <= trainer.global_step]
        if trainer.global_step == 0:
            kept = []
        self.seconds_before = max((r["seconds"] for r in kept), default=0.0)
        self.path.write_text("".join(json.dumps(r) + "\n" for r in kept))
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[info]}")]
        console = Console(stderr=True)
        self.bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("distill", total=trainer.max_steps, completed=trainer.global_step, info="")
        self.bar.start()

    def _record(self, record: dict[str, Any]) -> None:
        with open(self.path, "a") as stream:
            stream.write(json.dumps(record) + "\n")

    def _seconds(self) -> float:
        return round(self.seconds_before + time.monotonic() - self.start, 2)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Record one step in `log_every`, and the last."""
        step = trainer.global_step
        if not trainer.is_global_zero or (step % self.log_every and step != trainer.max_steps):
            return
        metrics = trainer.callback_metrics
        loss = float(metrics["reduced_train_loss"])
        if not math.isfinite(loss):
            raise GateError(f"step {step}: the loss is {loss}; the last good checkpoint is kept, lower optim.lr or look at the text")
        now = time.monotonic()
        rate = (step - self.marked) * self.tokens_per_step / max(now - self.mark, 1e-9)
        self.mark, self.marked = now, step
        record = {
            "step": step,
            "loss": loss,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "grad_norm": float(metrics.get("grad_norm", math.nan)),
            "tokens": step * self.tokens_per_step,
            "tokens_per_second": round(rate, 1),
            "seconds": self._seconds(),
        }
        self._record(record)
        info = f"KL {loss:.3f}  {rate:.0f} tokens/s"
        self.bar.update(self.task, completed=step, info=info)
        if not self.bar.console.is_terminal:
            print(f"  step {step:>6}/{trainer.max_steps}  KL {loss:.4f}  {rate:.0f} tokens/s", flush=True)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Record the student's held-out cross-entropy."""
        if trainer.is_global_zero and not trainer.sanity_checking and "val_loss" in trainer.callback_metrics:
            loss = float(trainer.callback_metrics["val_loss"])
            step = trainer.global_step
            self._record(
                {"step": step, "held_out_loss": loss, "tokens": step * self.tokens_per_step, "seconds": self._seconds()}
            )
            # Validation is not training: leave it out of the rate.
            self.mark, self.marked = time.monotonic(), step

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Close the bar."""
        if trainer.is_global_zero:
            self.bar.stop()

