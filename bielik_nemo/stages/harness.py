"""Benchmarks of `evaluate`: tasks of lm-evaluation-harness on every model, and what each recovers of the source.

Leaves `evaluate/harness/<model>/<task>.json` as soon as a model has answered a task, with all its answers; an
evaluation that was interrupted goes on behind those that are there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bielik_nemo import artifacts, recovery, ui
from bielik_nemo.config import Config
from bielik_nemo.config_outcome import Harness
from bielik_nemo.data import harness, harness_checks
from bielik_nemo.data.harness import HarnessTask
from bielik_nemo.engine import distributed
from bielik_nemo.errors import DataError, GateError
from bielik_nemo.recovery import Recovery
from bielik_nemo.stages.subject import Subject

DIRECTORY = "harness"
TEACHER = "source"


class Benchmarks:
    """The tasks of `evaluate.harness.tasks`.

    Args:
        config: of the run.
        run_dir: of the run.

    Raises:
        DataError: a task cannot be made, or is not to be: see harness_checks.py.
    """

    def __init__(self, config: Config, run_dir: Path):
        self.config, self.settings = config, config.evaluate.harness
        self.here = run_dir / "evaluate" / DIRECTORY
        self.tasks: list[HarnessTask] = []
        if self.settings.tasks:
            if problems := list(harness_checks.problems(self.settings)):
                raise DataError("\n".join(problems))
            self.tasks = harness.chosen(self.settings)
        self.built = {task.name: harness.build(task, self.settings) for task in self.tasks}

    def measure(self, subject: Subject, megatron: Any) -> None:
        """Ask a model what it has not been asked yet."""
        here = self.here / subject.name
        left = distributed.from_first([task.name for task in self.tasks if not _file(here, task).is_file()])
        if not left:
            return
        from bielik_nemo.engine.asking import ask  # lm_eval: only where something is asked
        from bielik_nemo.engine.harness import MegatronLM

        shape, batch_size, words = subject.shape, self.config.evaluate.batch_size, subject.words()
        if self.settings.chat_template and not words.chat_template:
            found = f"found True, but the tokenizer of {subject.name} has no template"
            raise DataError(f"evaluate.harness.chat_template: {found}, allowed: False")
        lm = MegatronLM(megatron, words, shape.vocab_size, shape.max_position_embeddings, batch_size)
        for task in self.tasks:
            if task.name in left:
                lm.label = f"{task.name}, {subject.name}"
                self.built[task.name].set_fewshot_seed(harness.SEED)
                found = ask(lm, self.built[task.name], self.settings.limit, self.settings.chat_template)
                if distributed.rank() == 0:
                    artifacts.write_json(_file(here, task), found)
                ui.say(f"  {task.name}, {subject.name}: {found['metric']} {found['scores'][found['metric']]:.4g}")

    def compared(self, models: Sequence[str]) -> dict[str, Any]:
        """Scores of all models and what they recover, see `compare`; nothing where there are no tasks."""
        if not self.tasks:
            return {}
        answers = {
            task.name: {model: artifacts.read_json(_file(self.here / model, task)) for model in models}
            for task in self.tasks
        }
        return compare(self.tasks, answers, lambda name, metric: self.built[name].aggregation()[metric], self.settings)


def _file(here: Path, task: HarnessTask) -> Path:
    return here / f"{task.name}.json"


def compare(
    tasks: Sequence[HarnessTask],
    answers: dict[str, dict[str, dict[str, Any]]],
    aggregation: Callable[[str, str], Callable[[list[Any]], float]],
    settings: Harness,
) -> dict[str, Any]:
    """Scores with intervals, and recovery per task, per group and in the mean.

    Args:
        tasks: which.
        answers: by task and model, as `engine.asking.ask` returns them; `source` is the teacher.
        aggregation: the way from values of documents to a score, by the names of task and metric.
        settings: confidence and number of resamples.

    Raises:
        GateError: models were asked different documents, or a score is not finite.
    """
    found: dict[str, Any] = {}
    recovered: dict[str, dict[str, Recovery]] = {}
    for task in tasks:
        of_models = answers[task.name]
        teacher = of_models[TEACHER]
        documents = [each["digest"] for each in teacher["documents"]]
        for name, each in of_models.items():
            if [document["digest"] for document in each["documents"]] != documents:
                raise GateError(f"task {task.name}: {name} was asked other documents than {TEACHER}")
        aggregate = aggregation(task.name, teacher["metric"])
        scores, recoveries = _task(of_models, aggregate, settings.confidence, settings.resamples)
        recovered[task.name] = recoveries
        if wrong := [name for name, score in scores.items() if not math.isfinite(score.value)]:
            raise GateError(f"task {task.name}: {teacher['metric']} of {', '.join(wrong)} is not finite")
        found[task.name] = {
            "metric": teacher["metric"],
            "samples": len(documents),
            "shots": teacher["shots"],
            "group": task.group,
            "higher_is_better": teacher["higher_is_better"],
            "models": {name: score.plain() for name, score in scores.items()},
            "recovery": {name: each.plain() for name, each in recoveries.items()},
        }
        if chance := (task.config.get("metadata") or {}).get("chance"):
            above = {name: recovery.above_chance(score.value, chance) for name, score in scores.items()}
            found[task.name] |= {"chance": chance, "above_chance": above}
    students = [name for name in answers[tasks[0].name] if name != TEACHER]

    def mean(student: str, names: Sequence[str]) -> dict[str, Any]:
        return recovery.mean([recovered[name][student] for name in names], settings.confidence).plain()

    groups = {group: [task.name for task in tasks if task.group == group] for group in {task.group for task in tasks}}
    return {
        "teacher": TEACHER,
        "confidence": settings.confidence,
        "tasks": found,
        "groups": {
            group: {student: mean(student, names) for student in students}
            for group, names in sorted(groups.items())
            if group
        },
        "mean": {student: mean(student, list(found)) for student in students},
    }


def _task(
    answers: dict[str, dict[str, Any]], aggregate: Callable[[list[Any]], float], confidence: float, resamples: int
) -> tuple[dict[str, recovery.Score], dict[str, Recovery]]:
    """Scores and recoveries of one task, by model."""
    teacher = answers[TEACHER]
    values = {name: [each["value"] for each in found["documents"]] for name, found in answers.items()}
    students = [name for name in answers if name != TEACHER]
    count = len(values[TEACHER])
    if teacher["mean"]:
        scores = {name: recovery.score(each, confidence) for name, each in values.items()}
        recoveries = {name: recovery.of_means(values[name], values[TEACHER], confidence) for name in students}
    else:
        of_all = {name: float(aggregate(each)) for name, each in values.items()}
        from bielik_nemo.data.translation import counted  # lm_eval: only where something was asked

        draws = recovery.resampled(*counted(aggregate, values), resamples)
        scores = {name: recovery.score_of_draws(of_all[name], draws[name], count, confidence) for name in answers}
        recoveries = {
            name: recovery.of_draws(of_all[name], of_all[TEACHER], draws[name], draws[TEACHER], count, confidence)
            for name in students
        }
    if not teacher["higher_is_better"]:
        recoveries = dict.fromkeys(students, Recovery(None, reason=f"{teacher['metric']} is better when it is lower"))
    return scores, recoveries
