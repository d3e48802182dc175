"""Going on after an interruption: which checkpoints are kept, and from which one a run goes on.

NeMo 2.7.3 looks below its log directory for a `-last` link, which is missing from the time the checkpoint before is
removed until the new one is linked, and takes any checkpoint that is marked as finished. Here the step in a
checkpoint's name decides, and one that is damaged is passed over. Lightning keeps the newest ones as it would keep the
best: those with the largest step.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nemo import lightning as nl
from nemo.lightning.ckpt_utils import ckpt_to_dir
from nemo.lightning.pytorch.callbacks import ModelCheckpoint

from bielik_nemo import artifacts, stopping, ui
from bielik_nemo.engine import distributed, integrity
from bielik_nemo.errors import CheckpointError

FILENAME = "{step}"
"""Template of a checkpoint's name; Lightning writes the index of its last step, `step=11` after 12 steps."""


def finished(directory: Path) -> list[Path]:
    """The finished checkpoints of a training run, oldest first; NeMo marks those that it is writing or removing."""
    found = [
        path
        for path in directory.glob("*")
        if re.fullmatch(r"step=\d+", path.name)
        and (path / "weights").is_dir()
        and not ModelCheckpoint.is_checkpoint_unfinished(path)
    ]
    return sorted(found, key=_index)


def _index(path: Path) -> int:
    return int(path.name.removeprefix("step="))


class Resume(nl.AutoResume):
    """Restores the newest good checkpoint of the run, or else the weights of `restore_config`."""

    def setup(self, trainer: nl.Trainer, model: Any = None) -> None:
        """Look where the trainer's own callback leaves its checkpoints."""
        self.resume_from_directory = trainer.checkpoint_callback.dirpath
        super().setup(trainer, model)

    def _find_trainer_ckpt_path(self) -> Path | None:
        """Every rank looks for itself: there is no process group yet, and NeMo sets up nothing where there is one."""
        found = finished(Path(self.resume_from_directory))
        for path in reversed(found):
            fault = integrity.fault(path)
            if not fault:
                ui.say(f"  goes on from the checkpoint of step {_index(path) + 1}")
                return path
            ui.say(f"  the checkpoint of step {_index(path) + 1} is passed over: {fault}")
        if found:
            ui.say("  no good checkpoint is left: training starts from the beginning")
        return None


class Checkpoints(ModelCheckpoint):
    """Keeps the newest checkpoints, sealed with digests, over any number of interruptions.

    Args:
        keep: how many.
        settings: of NeMo's `ModelCheckpoint`.
    """

    def __init__(self, keep: int, **settings: Any):
        super().__init__(monitor="step", mode="max", save_top_k=keep, save_last=False, **settings)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Sort out what earlier attempts left.

        Raises:
            CheckpointError: ranks found different checkpoints to go on from, such as on a disk that is not shared.
        """
        self.resumed = Path(trainer.ckpt_path).parent.name if trainer.ckpt_path else ""
        each: list[str] = [""] * distributed.world_size()
        torch.distributed.all_gather_object(each, self.resumed)
        if len(set(each)) > 1:
            found = ", ".join(f"{name or 'none'} (rank {rank})" for rank, name in enumerate(each))
            raise CheckpointError(f"{self.dirpath}: ranks go on from different checkpoints: {found}")
        super().on_train_start(trainer, module)

    def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        """Save a checkpoint when one is due, and when all ranks have agreed to stop.

        Raises:
            Stopped: that one is saved.
        """
        super().on_train_batch_end(trainer, module, *rest)
        if not trainer.should_stop:
            return
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        if self.async_save:
            trainer.strategy.checkpoint_io.maybe_finalize_save_checkpoint(blocking=True)
        distributed.barrier()  # rank 0 marks it as finished; the first rank that says it has stopped ends all
        raise stopping.stopped(f" after step {trainer.global_step}, which is saved")

    def nemo_topk_check_previous_run(self) -> None:
        """Count what earlier attempts left among those to keep; what is too old goes, what was passed over aside."""
        found = finished(Path(self.dirpath))
        passed = [path for path in found if not self.resumed or _index(path) > _index(Path(self.resumed))]
        good = found[: len(found) - len(passed)]
        kept = good[-self.save_top_k :]
        self.best_k_models = {str(path): torch.tensor(_index(path)) for path in kept}
        self.best_model_path = str(kept[-1]) if kept else ""
        self.kth_best_model_path = str(kept[0]) if kept else ""
        distributed.barrier()  # all ranks have looked
        if distributed.rank() == 0:
            for path in good[: -self.save_top_k]:
                artifacts.remove(path)
            for path in passed:
                aside = path.with_name(f"{path.name}-damaged")
                if aside.exists():
                    artifacts.remove(aside)
                os.replace(path, aside)

    def _get_finalize_save_checkpoint_callback(self, trainer: Any, filepath: str, global_step: int) -> Callable:
        finalize = super()._get_finalize_save_checkpoint_callback(trainer, filepath, global_step)

        def seal_and_finalize() -> None:
            integrity.seal(ckpt_to_dir(filepath))
            finalize()

        return seal_and_finalize
