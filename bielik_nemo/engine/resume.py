"""Going on after an interruption: which checkpoint is the newest that was finished, and which can go.

NeMo 2.7.3 looks below its log directory for a `-last` link, which is missing from the time the checkpoint before is
removed until the new one is linked, and for the value of a monitored metric in the checkpoints' paths, of which there
is none when simply the newest one is kept. Here the step in a checkpoint's name decides.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from nemo import lightning as nl
from nemo.lightning.pytorch.callbacks import ModelCheckpoint

from bielik_nemo.engine import distributed

FILENAME = "{step}"
"""Template of a checkpoint's name; Lightning writes it as `step=11`."""


def finished(directory: Path) -> list[Path]:
    """The finished checkpoints of a training run, oldest first; NeMo marks those that it is writing or removing."""
    steps = {
        path: int(match[1])
        for path in directory.glob("*")
        if (match := re.fullmatch(r"step=(\d+)", path.name))
        and (path / "weights" / ".metadata").is_file()
        and not ModelCheckpoint.is_checkpoint_unfinished(path)
    }
    return sorted(steps, key=steps.__getitem__)


class Resume(nl.AutoResume):
    """Restores the newest finished checkpoint of the run, or else the weights of `restore_config`."""

    def setup(self, trainer: nl.Trainer, model: Any = None) -> None:
        """Look where the trainer's own callback leaves its checkpoints."""
        self.resume_from_directory = trainer.checkpoint_callback.dirpath
        super().setup(trainer, model)

    def _find_trainer_ckpt_path(self) -> Path | None:
        found = finished(Path(self.resume_from_directory))
        return found[-1] if found else None


class NewestCheckpoint(ModelCheckpoint):
    """Keeps one finished checkpoint, the newest, over any number of interruptions."""

    def nemo_topk_check_previous_run(self) -> None:
        """Find what an earlier attempt left: its newest checkpoint is the one to replace, older ones go."""
        *older, self.best_model_path = ["", *map(str, finished(Path(self.dirpath)))]
        if distributed.rank() == 0:
            for path in filter(None, older):
                shutil.rmtree(path)
