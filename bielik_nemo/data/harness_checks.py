"""What would stop tasks of lm-evaluation-harness, found before anything runs: no harness, no documents, foreign code.

Code is what YAML names as `!function`, `class` or `use_prompt`, and metrics of the hub. The harness's own and ours is
run; that of other files only with `allow_code`, and that of the hub never.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml

from bielik_nemo.config_outcome import Harness
from bielik_nemo.data.harness import OWN, HarnessTask, chosen
from bielik_nemo.errors import DataError

INSTALL = 'pip install "bielik_nemo[measure]"'
NAMED = 3
"""Tasks that a message names."""


def problems(settings: Harness) -> Iterator[str]:
    """What stops these tasks on this machine, as `key: found ..., allowed: ...`."""
    if find_spec("lm_eval") is None:
        yield f"evaluate.harness.tasks: needs lm-evaluation-harness, which is not installed; {INSTALL}"
        return
    for name in ("data_dir", "include_path"):
        if (path := getattr(settings, name)) and not Path(path).is_dir():
            yield f"evaluate.harness.{name}: no such directory: {path!r}"
            return
    try:
        tasks = chosen(settings)
    except DataError as error:
        yield str(error)
        return
    for task in tasks:
        yield from _foreign_code(task, settings)
        yield from _hub_metrics(task)
        yield from _fetching(task, settings)
    yield from _absent(tasks, settings)


def _foreign_code(task: HarnessTask, settings: Harness) -> Iterator[str]:
    if settings.allow_code:
        return
    for path, what in code(task.path):
        yield (
            f"evaluate.harness.include_path: {path}: found {what}, which is code, in task {task.name}, allowed: none, "
            "or evaluate.harness.allow_code=true for files that you trust"
        )


def code(path: Path, seen: frozenset[Path] = frozenset()) -> list[tuple[Path, str]]:
    """Code that a task's YAML and what it includes would run, neither the harness's nor ours: file and what it says."""
    path = path.resolve()
    if path in seen:
        return []
    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    found, includes, nodes = [], [], [root]
    while nodes:
        node = nodes.pop()
        if node.tag == "!function":
            found.append((path, f"!function {node.value}"))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                nodes.append(value)
                if key.value in ("class", "use_prompt"):
                    found.append((path, f"{key.value}: {value.value}"))
                if key.value == "include":
                    includes += value.value if isinstance(value, yaml.SequenceNode) else [value]
    if any(path.is_relative_to(root) for root in _trusted()):
        found = []
    for each in includes:
        found += code(path.parent / each.value, seen | {path})
    return found


def _trusted() -> tuple[Path, ...]:
    return OWN.resolve(), Path(find_spec("lm_eval").origin).resolve().parent / "tasks"


def _hub_metrics(task: HarnessTask) -> Iterator[str]:
    """Metrics that lm_eval would take from the hub as code, which it also does with names that it does not know."""
    from lm_eval.api.registry import metric_registry

    for metric in task.config.get("metric_list") or ():
        name = metric["metric"]
        unknown = name not in metric_registry and not task.config.get("process_results")
        if isinstance(name, str) and (metric.get("hf_evaluate") or unknown):
            yield (
                f"evaluate.harness.tasks: task {task.name}: found the metric {name} of the hub, which is code, "
                "allowed: tasks with metrics of lm-evaluation-harness itself"
            )


def _fetching(task: HarnessTask, settings: Harness) -> Iterator[str]:
    """Tasks whose code gets their documents from somewhere."""
    ours = task.path.resolve().is_relative_to(OWN.resolve())
    if (task.own_dataset or task.config.get("class")) and not ours and not settings.download:
        yield (
            f"evaluate.harness.tasks: task {task.name}: its own code fetches its documents, allowed: with "
            "evaluate.harness.download=true"
        )


def _absent(tasks: Sequence[HarnessTask], settings: Harness) -> Iterator[str]:
    """Documents that are not here and may not be downloaded: which file is wanted for what, and what is in it."""
    offline = any(os.environ.get(name, "") not in ("", "0") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
    if settings.download and not offline:
        return
    wanted: dict[tuple[str, str], list[HarnessTask]] = {}
    for task in tasks:
        for split in () if task.own_dataset or task.config.get("class") else task.splits(settings.shots):
            if task.file(settings.data_dir, split) is None:
                wanted.setdefault((task.dataset, split), []).append(task)
    download = "" if offline else ", or evaluate.harness.download=true"
    for (dataset, split), users in wanted.items():
        where = Path(settings.data_dir or "<evaluate.harness.data_dir>", dataset, f"{split}.jsonl")
        names = ", ".join(task.name for task in users[:NAMED]) + f" and {len(users) - NAMED} more" * (
            len(users) > NAMED
        )
        fields = ", ".join(sorted({field for task in users for field in task.fields})) or "the dataset's own fields"
        origin = f"the split {split} of {users[0].config.get('dataset_path')}"
        yield (
            f"evaluate.harness.data_dir: task{'s' * (len(users) > 1)} {names}: found no {where} (or .parquet), which "
            f"has {origin}, a document a line with {fields}{download}"
        )
