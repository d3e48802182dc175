"""The student with the lowest held-out loss, kept beside the checkpoints: `trainer.keep_best`.

Weights alone, written whenever a measurement is lower than all before it, whatever the rhythm of checkpoints. Step and
loss stand in the directory's name, so that both are there exactly when the weights are.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bielik_nemo import ui
from bielik_nemo.artifacts import remove
from bielik_nemo.engine import checkpoint, distributed

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

DIRECTORY = "best"
"""In the stage's own."""


class Best(NamedTuple):
    """Weights that were kept: held-out loss (or reward, its sign turned), the step they are of, and where they are."""

    loss: float
    step: int
    path: Path


def find(directory: Path) -> Best | None:
    """The best that is kept in a directory; None where there is none."""
    matches = ((path, re.fullmatch(r"step=(\d+),held_out_loss=(-?\d\S*)", path.name)) for path in directory.glob("*"))
    return min((Best(float(m[2]), int(m[1]), p) for p, m in matches if m and p.suffix != ".partial"), default=None)


def keep(model: GPTModel, directory: Path, step: int, loss: float) -> None:
    """Keep the weights of a model that is spread over all ranks if its loss, the same on all, is the lowest so far."""
    before = find(directory)
    if before and not loss < before.loss:
        return
    new = directory / f"step={step},held_out_loss={loss!r}"
    checkpoint.save(model, new)
    if distributed.rank() == 0:
        for path in directory.iterdir():
            if path != new:
                remove(path)


def leave(model: GPTModel, stage: Path) -> Best | None:
    """Write a training stage's result, `megatron`: the best weights where they were kept, else the model's, the last.

    Returns:
        What was taken of the best, which stays where it is until the stage is recorded; None: the last.
    """
    best, result = find(stage / DIRECTORY), stage / "megatron"
    if best is None:
        checkpoint.save(model, result)
        return None
    with distributed.whole_directory(result) as partial:
        if distributed.rank() == 0:
            shutil.copytree(best.path, partial, dirs_exist_ok=True)
    ui.say(f"  the result is the model of step {best.step}, with a held-out loss of {best.loss:.4f}")
    return best
