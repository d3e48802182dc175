"""Which tasks each rollout of a run has, and how many updates there are: known before anything is sampled."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bielik_nemo.data import tasks as task_data
from bielik_nemo.data.tasks import Prepared
from bielik_nemo.errors import DataError


class Plan(NamedTuple):
    """What a run is made of."""

    tasks: list[Prepared]
    left_out: int  # tasks whose prompt is too long
    updates: int  # of each rollout
    steps: int

    def drawn(self, rollout: int, prompts: int, seed: int) -> list[Prepared]:
        """The tasks of a rollout: every epoch goes through them in another order."""

        @functools.cache
        def order(epoch: int) -> np.ndarray:
            return np.random.default_rng([seed, epoch]).permutation(len(self.tasks))

        places = (divmod(place, len(self.tasks)) for place in range(rollout * prompts, (rollout + 1) * prompts))
        return [self.tasks[order(epoch)[place]] for epoch, place in places]


@functools.lru_cache(maxsize=2)
def plan(
    file: str, max_prompt_tokens: int, prompts: int, batch: int, passes: int, epochs: float, max_steps: int | None
) -> Plan:
    """What a run is made of.

    Args:
        file: tasks/train.jsonl.
        max_prompt_tokens: tasks with longer prompts are left out.
        prompts: of a rollout.
        batch: prompts of an update.
        passes: updates that are made of each answer.
        epochs: how often each task is asked.
        max_steps: how many updates there are; None: as many as the epochs take.

    Raises:
        DataError: no task is left.
    """
    every = task_data.read(Path(file))
    tasks = [each for each in every if len(each.ids) <= max_prompt_tokens]
    if not tasks:
        raise DataError(f"{file}: no task has a prompt of at most grpo.max_prompt_tokens={max_prompt_tokens}")
    updates = prompts // batch * passes
    steps = max_steps or math.ceil(epochs * len(tasks) / prompts) * updates
    return Plan(tasks, len(every) - len(tasks), updates, steps)
