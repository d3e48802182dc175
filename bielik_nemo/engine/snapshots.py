"""Copies of the weights that training leaves every so many steps, to be merged or measured: `trainer.snapshot_every`.

Named by their step and written whole before the checkpoint of that step is, so that a run which goes on from it has all
up to there; those of steps that it does again are removed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from bielik_nemo.artifacts import remove
from bielik_nemo.engine import checkpoint, distributed

DIRECTORY = "snapshots"
"""In the stage's own."""


def find(directory: Path) -> list[Path]:
    """The snapshots in a directory, oldest first."""
    return sorted((path for path in directory.glob("*") if path.name.isdigit()), key=lambda path: int(path.name))


class Snapshots(pl.Callback):
    """Writes snapshots as Megatron checkpoints.

    Args:
        directory: that holds nothing else.
        every: steps between two.
    """

    def __init__(self, directory: str, every: int):
        self.directory, self.every = Path(directory), every

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Keep what an earlier attempt left of the steps that are done."""
        if distributed.rank() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            done = {path for path in find(self.directory) if int(path.name) <= trainer.global_step}
            for path in set(self.directory.iterdir()) - done:
                remove(path)
        distributed.barrier()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        """Write one where it is due."""
        if trainer.global_step % self.every == 0:
            checkpoint.save(module.core_module, self.directory / str(trainer.global_step))
