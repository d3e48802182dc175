"""Tasks of lm-evaluation-harness: which are meant, where their documents are, and how they are made.

A task is YAML in the harness's own format: its own, ours in bielik_nemo/harness_tasks/, or the user's. What they say is
read without running any code of theirs. The documents of a task come from `data_dir`, where

    <data_dir>/<last part of dataset_path>[/<dataset_name>]/<split>.jsonl        (or .parquet)

has them, one JSON object per line with the fields that the task's templates name; `<data_dir>/<task>/` those of a task
that names files of its own. Only with `download` may the harness ask the Hugging Face hub for what is not there.

What would be code is refused before (harness_checks.py). Templates are rendered in jinja2's sandbox, which lm_eval
0.4.13 does not do itself.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bielik_nemo.config_outcome import Harness
from bielik_nemo.errors import DataError
from bielik_nemo.keys import nearest

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask

OWN = Path(__file__).parent.parent / "harness_tasks"
SUFFIXES = (".jsonl", ".parquet")
FORMATS = ("arrow", "csv", "json", "parquet", "text")
"""What stands for a dataset in tasks that name files of their own, which would not count as what was read."""
TEMPLATES = ("doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix")
LISTED = "allowed: tasks, groups and tags of `lm-eval ls tasks`, of bielik_nemo/harness_tasks, of include_path"
SEED = 1234
"""Of the few-shot examples, which are the same for every model."""


@dataclass(frozen=True)
class HarnessTask:
    """A task that is to be asked.

    Attributes:
        name: of the task.
        group: the name of a group or tag that it was found under; empty where it was named itself.
        path: its YAML.
        config: what that says, with all that it includes; functions as text.
        overrides: what the group says besides.
    """

    name: str
    group: str
    path: Path
    config: dict[str, Any]
    overrides: dict[str, Any]

    @property
    def own_dataset(self) -> bool:
        """Whether a function makes its documents, so that there are no files of them."""
        return "custom_dataset" in self.config

    @property
    def dataset(self) -> str:
        """Folder of its documents below `data_dir`: as the hub calls them, or as the task is called."""
        path, name = self.config.get("dataset_path") or "", self.config.get("dataset_name")
        if path in ("", *FORMATS):
            return self.name
        return path.rpartition("/")[2] + (f"/{name}" if name else "")

    def shots(self, wanted: int | None) -> int:
        """Examples before each document; a task that says 0 has none whatever is wanted."""
        own = self.config.get("num_fewshot")
        return own or 0 if wanted is None or own == 0 else wanted

    @property
    def evaluated(self) -> str:
        """Split whose documents are asked."""
        return self.config.get("test_split") or self.config.get("validation_split") or "test"

    def splits(self, wanted: int | None) -> list[str]:
        """Splits that are read: what is asked, and what examples are taken from."""
        shown = self.config.get("fewshot_config") or {}
        if not self.shots(wanted) or shown.get("samples"):
            return [self.evaluated]
        names = (shown.get("split"), *map(self.config.get, ("fewshot_split", "training_split", "validation_split")))
        return list(dict.fromkeys([self.evaluated, next(filter(None, names), self.evaluated)]))

    def file(self, data_dir: str, split: str) -> Path | None:
        """The documents of a split, where they are."""
        names = (Path(data_dir, self.dataset, split + suffix) for suffix in SUFFIXES)
        return next((path for path in names if path.is_file()), None) if data_dir else None

    @property
    def fields(self) -> list[str]:
        """Fields of a document that its templates name; none where code of the harness makes others of them."""
        if "process_docs" in self.config and not self.path.is_relative_to(OWN):
            return []
        from jinja2 import Environment, meta

        found: set[str] = set()
        for text in filter(lambda each: isinstance(each, str), map(self.config.get, TEMPLATES)):
            if text.isidentifier() and text != self.config.get("description"):
                found.add(text)
            found |= meta.find_undeclared_variables(Environment().parse(text))
        return sorted(found)


def chosen(settings: Harness) -> list[HarnessTask]:
    """The tasks that `tasks` names, groups and tags taken apart, each once.

    Raises:
        DataError: there is none of a name.
    """
    found: dict[str, HarnessTask] = {}
    for name in settings.tasks:
        for task in _leaves(settings.include_path, name, "", {}):
            found.setdefault(task.name, task)
    return list(found.values())


def _leaves(include: str, name: str, group: str, overrides: dict[str, Any]) -> Iterator[HarnessTask]:
    entry = _entry(include, name)
    kind = entry.kind.name
    if kind == "TAG":
        for member in sorted(entry.tags):
            yield from _leaves(include, member, group or name, overrides)
    elif kind == "GROUP":
        yield from _members(include, entry.cfg["task"], group or name, overrides)
    else:
        yield HarnessTask(name, group, entry.yaml_path, entry.cfg | overrides, overrides)


def _members(include: str, members: list[Any], group: str, overrides: dict[str, Any]) -> Iterator[HarnessTask]:
    """Of a group, whose members are names, or names with settings of their own, or groups written out."""
    for member in members:
        if isinstance(member, str):
            yield from _leaves(include, member, group, overrides)
        elif isinstance(member.get("task"), list):
            yield from _members(include, member["task"], group, overrides)
        else:
            own = {key: value for key, value in member.items() if key not in ("task", "group")}
            yield from _leaves(include, member.get("task") or member["group"], group, overrides | own)


def _entry(include: str, name: str) -> Any:
    """The harness's entry of a name: of ours and the user's, and only then of its own, which take seconds to read."""
    near = _index(include, False)
    found = near.get(name) or _index(include, True).get(name)
    if found is None:
        known = _index(include, True)
        raise DataError(f"evaluate.harness.tasks: found {name!r}, which is no task{nearest(name, known)}; {LISTED}")
    return found


@functools.cache
def _index(include: str, shipped: bool) -> Mapping[str, Any]:
    from lm_eval.tasks import TaskManager

    paths = [OWN, *([Path(include)] if include else [])]
    return TaskManager(include_path=paths, include_defaults=shipped).task_index


def build(task: HarnessTask, settings: Harness) -> ConfigurableTask:
    """The harness's task, with its documents.

    Raises:
        DataError: they cannot be read, have other fields than the task's templates, or are too few for its examples.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    _sandbox()
    shots, splits = task.shots(settings.shots), task.splits(settings.shots)
    config = load_yaml(task.path, resolve_func=True) | task.overrides | {"num_fewshot": shots}
    if shots and splits == [task.evaluated] and "fewshot_config" not in config:
        config["fewshot_split"] = task.evaluated  # then the harness sees to it that no document is its own example
    files = {split: task.file(settings.data_dir, split) for split in splits}
    if not task.own_dataset and all(files.values()):
        config["custom_dataset"] = lambda **_: _datasets(files, task.fields)
        config = {key: value for key, value in config.items() if key != "dataset_kwargs"}
        for name in ("training_split", "validation_split", "test_split", "fewshot_split"):
            if config.get(name) not in splits:  # the harness would read it before it knows that it needs none
                config.pop(name, None)
    try:
        (built,) = TaskManager(include_defaults=False).load([config])["tasks"].values()
    except DataError:
        raise
    except Exception as error:
        where = ", ".join(map(str, filter(None, files.values()))) or f"{task.config.get('dataset_path')} of the hub"
        raise DataError(f"task {task.name}: cannot be made from {where}: {' '.join(str(error).split())}") from error
    pool = len(built.sampler.df) - (built.config.fewshot_split == task.evaluated) if shots else 0
    if pool < shots:
        raise DataError(f"task {task.name}: found {pool} examples, allowed: {shots} (evaluate.harness.shots) or more")
    built.set_fewshot_seed(SEED)
    return built


def _datasets(files: Mapping[str, Path], fields: Sequence[str]) -> Mapping[str, Any]:
    from datasets import Dataset

    return {split: Dataset.from_list(_documents(path, fields)) for split, path in files.items()}


def _documents(path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    """Documents of a file, which have these fields at least.

    Raises:
        DataError: a line is no JSON object or lacks a field, or there is none.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet

        found = pyarrow.parquet.read_table(path).to_pylist()
    else:
        found = []
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            if not line.strip():
                continue
            try:
                document = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number}: not JSON ({error})") from None
            if not isinstance(document, dict):
                raise DataError(f"{path}:{number}: found {type(document).__name__}, allowed: a JSON object per line")
            found.append(document)
    if not found:
        raise DataError(f"{path}: found no document")
    for number, document in enumerate(found, start=1):
        if missing := [field for field in fields if field not in document]:
            raise DataError(f"{path}: document {number}: found no {', '.join(missing)}, allowed: {', '.join(fields)}")
    return found


def _sandbox() -> None:
    """Let the harness render templates of tasks where they can compute, and nothing else."""
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    if not isinstance(utils.env, SandboxedEnvironment):
        sandboxed = SandboxedEnvironment(
            loader=utils.env.loader,
            undefined=utils.env.undefined,
            keep_trailing_newline=utils.env.keep_trailing_newline,
        )
        sandboxed.filters |= utils.env.filters
        utils.env = sandboxed
