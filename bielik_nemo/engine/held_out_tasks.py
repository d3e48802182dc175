"""The held-out tasks on which every model of a run is measured: the same ones, with the same noise, each time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bielik_nemo.data import tasks as task_data
from bielik_nemo.data.tasks import Prepared
from bielik_nemo.engine.grading import Graded, Grader, summary
from bielik_nemo.engine.rollout import Sampling

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel


@dataclass
class HeldOutTasks:
    """The first tasks of every source, each answered once, by sampling as in training: what training is to raise."""

    file: str  # tasks/held_out.jsonl
    tasks: int  # in which the sources have equal parts
    max_prompt_tokens: int
    grader: Grader
    sampling: Sampling
    sources: list[str]  # names for people, of all sources

    def record(self, model: GPTModel) -> dict[str, Any]:
        """What is to be written down of a model: the numbers of `grading.summary`, and the reward by source."""
        found, by_source = self.measure(model)
        named = {f"held_out_{name}": value for name, value in found.items()}
        return named | ({"held_out_reward_by_source": by_source} if len(by_source) > 1 else {})

    def measure(
        self, model: GPTModel, on_task: Callable[[], None] = lambda: None
    ) -> tuple[dict[str, float], dict[str, float]]:
        """The numbers of `grading.summary`, and the mean reward by source; the same on every rank."""
        chosen = self.chosen()
        graded = self.grader(model, chosen, range(len(chosen)), 1, self.sampling, on_task)
        by_source: dict[str, list[list[Graded]]] = {}
        for task, answers in zip(chosen, graded, strict=True):
            by_source.setdefault(self.sources[task.source], []).append(answers)
        return summary(graded), {name: summary(each)["reward"] for name, each in by_source.items()}

    def chosen(self) -> list[Prepared]:
        """The tasks."""
        every = [each for each in task_data.read(Path(self.file)) if len(each.ids) <= self.max_prompt_tokens]
        numbers = sorted({each.source for each in every})
        part = -(-self.tasks // max(len(numbers), 1))
        return [task for number in numbers for task in [each for each in every if each.source == number][:part]]
