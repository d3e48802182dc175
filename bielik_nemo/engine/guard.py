"""What ends training early, seen by all ranks at the end of the same step: a signal, or a loss that is no good.

One all-reduce of two numbers a step, where the loss has just been fetched from the device anyway. NeMo's
`PreemptionCallback` hears rank 0 alone, saves only where a `-last` link is kept, and then ends as if it had succeeded
(nemo 2.7.3).
"""

from __future__ import annotations

import json
import math
from collections import deque
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import get_micro_batch_size

from bielik_nemo import stopping
from bielik_nemo.artifacts import write_text
from bielik_nemo.engine import distributed
from bielik_nemo.errors import GateError

BAD_BATCH = "bad_batch.json"
WINDOW = 50
"""Steps over which the median is taken that a loss is compared with."""
FEWEST = 10
"""Steps that there must have been before a loss can be told to be a spike."""


class Guard(pl.Callback):
    """Stops training on a loss that is not finite or far above the recent ones, and asks for a save on a signal.

    Args:
        directory: of the stage; takes the batch that a loss is no good for, as `bad_batch.json`.
        global_batch_size: samples per step.
        max_spike: times the median of the last `WINDOW` losses that is too much; None: nothing is.
        floor: a median below it counts as this.
    """

    def __init__(self, directory: str, global_batch_size: int, max_spike: float | None, floor: float = 0.0):
        self.directory, self.global_batch_size, self.max_spike = Path(directory), global_batch_size, max_spike
        self.floor = floor
        self.recent: deque[float] = deque(maxlen=WINDOW)

    def state_dict(self) -> dict[str, Any]:
        """The recent losses, so that a resumed run judges as the uninterrupted one would."""
        return {"recent": list(self.recent)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up again."""
        self.recent.extend(state_dict["recent"])

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """From here on a signal waits for the end of a step."""
        stopping.defer()
        if trainer.is_global_zero:
            (self.directory / BAD_BATCH).unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Let all ranks agree on whether to go on; `resume.Checkpoints` saves when they stop.

        Raises:
            GateError: loss or gradient is not finite, or the loss is a spike; names the file with the batch.
        """
        # Of the pipeline's stages only the first, with rank 0, and the last know the loss.
        loss = float(trainer.callback_metrics["reduced_train_loss"])
        fault = self._fault(loss, float(trainer.callback_metrics.get("grad_norm", 0.0)))
        asked, faulty = _largest(stopping.asked(), int(bool(fault)))
        if faulty:
            where = self.directory / BAD_BATCH
            if trainer.is_global_zero:
                write_text(where, json.dumps(self._batch(trainer, fault), ensure_ascii=False) + "\n")
            fault = distributed.from_first(fault)  # which has written the file
            step = f"{fault} at step {trainer.global_step}"
            raise GateError(f"{self.directory.name}: {step}; lower optim.lr, or look at its batch in {where}")
        self.recent.append(loss)
        if asked:
            stopping.note(asked)
            trainer.should_stop = True

    def _fault(self, loss: float, norm: float) -> str:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}"
        usual = max(median(self.recent), self.floor) if len(self.recent) >= FEWEST else math.inf
        if self.max_spike is not None and loss > self.max_spike * usual:
            median_of = f"the median of the {len(self.recent)} steps before"
            times = (
                f"{loss / usual:.1f} times {median_of if usual > self.floor else f'{usual:.4f}, more than {median_of}'}"
            )
            return f"the loss is {loss:.4f}, {times} (allowed: trainer.max_loss_spike={self.max_spike:g})"
        return ""

    def _batch(self, trainer: Any, fault: str) -> dict[str, Any]:
        """The samples of the last step in their order, each with the micro-batch and data-parallel rank that had it."""
        data = trainer.datamodule
        newest = getattr(data, "newest", None)  # of a step that was not drawn but made
        first = 0 if newest else (trainer.global_step - 1) * self.global_batch_size
        size, ranks = get_micro_batch_size(), parallel_state.get_data_parallel_world_size()
        samples = []
        for place in range(len(newest) if newest else self.global_batch_size):
            sample = newest[place] if newest else data._train_ds[first + place]
            tokens = [*sample["tokens"].tolist(), int(sample["labels"][-1])]
            samples.append(
                {
                    "sample": first + place,
                    "micro_batch": place // (size * ranks),
                    "data_parallel_rank": place // size % ranks,
                    "text": data.tokenizer.ids_to_text(tokens),
                    "tokens": tokens,
                }
            )
        return {"step": trainer.global_step, "fault": fault, "losses_before": list(self.recent), "samples": samples}


def _largest(*numbers: int) -> list[int]:
    """Of each number the largest of all ranks."""
    if distributed.world_size() == 1:
        return list(numbers)
    each = torch.tensor(numbers, device=distributed.device())
    torch.distributed.all_reduce(each, torch.distributed.ReduceOp.MAX)
    return each.tolist()
