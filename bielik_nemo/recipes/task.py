"""Stages as NeMo-Run tasks, which another project changes and runs with any executor.

A stage that trains is a `Task` of `train`, over the parts of NeMo's `llm.train`: `model`, `data`, `trainer`, `log`,
`resume` and `optim`, built as for the command line. Any other is a `Partial` of `run_stage` or `run_pipeline` with the
whole configuration as its field `config`. None of them reads a file before it runs.

On each rank a task does what `bielik-nemo <stage>` does: it is skipped where it is done, goes on where it was
interrupted, and leaves a manifest. Where a part says something else than the configuration, manifest and fingerprint
tell that too: the stage's own task is built once more and compared, field by field. Stages that need the result take it
as it is; the command line without these changes would make its own.

Several ranks are torchrun's (`executor.launcher = "torchrun"`).
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fiddle as fdl
import nemo_run as run
from fiddle import daglish

from bielik_nemo import config as configuration
from bielik_nemo import job, pipeline, preflight, ui
from bielik_nemo.config import Config
from bielik_nemo.errors import ConfigError, Stopped
from bielik_nemo.stages import GRAPH, Stage
from bielik_nemo.stages.nodes import configured

PARTS = ("model", "data", "trainer", "log", "resume", "optim")
"""Fields of a task of training."""


class Parts(run.Config):
    """Builds to itself beside what its fields build to, so that a worker still knows what they were made of."""

    def __build__(self, /, **built: Any) -> tuple[Parts, dict[str, Any]]:
        """This config, and its parts."""
        return self, built


class Task(run.Partial):
    """A `Partial` whose parts stand in its field `made_of` as well, also when they are replaced."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in PARTS and "made_of" in self.__arguments__:
            setattr(self.made_of, name, value)


@dataclass(frozen=True)
class Begun:
    """A stage that is about to begin on this rank."""

    stage: Stage
    config: Config
    ranks: Any  # job.rendezvous's


def training(config: Config, stage: str) -> Task:
    """The task of a stage that trains; its files are in `run.dir`, seen from where this is called.

    Raises:
        ConfigError: it is not trained by NeMo.
    """
    if stage == "grpo" and config.grpo.engine == "nemo_rl":
        raise ConfigError("grpo.engine: found nemo_rl, allowed: megatron in a task; bielik-nemo submits the other")
    config = _here(config)
    own = _module(stage).build(config, Path(config.run.dir))
    parts = {name: getattr(own, name) for name in PARTS}
    return Task(
        train,
        begun=run.Config(begin, stage=stage, settings=configuration.dump(config)),
        **parts,
        made_of=Parts(fdl.get_callable(own), **parts),
    )


def computing(config: Config, stage: str) -> run.Partial:
    """The task of any other stage."""
    return run.Partial(run_stage, stage=stage, config=configured(_here(config)))


def whole(config: Config) -> run.Partial:
    """All stages of `pipeline.stages`, one after the other on one machine, as `bielik-nemo pipeline` runs them."""
    return run.Partial(run_pipeline, config=configured(_here(config)))


def begin(stage: str, settings: str) -> Begun:
    """Built first of all parts of a task: what the others read must be there.

    Raises:
        ConfigError: there are not as many ranks as configured, or preflight finds something.
        DataError: a stage that this one needs has not finished.
    """
    config, node = configuration.parse(settings, f"task of {stage}"), GRAPH[stage]
    several = "WORLD_SIZE" in os.environ
    found, wanted = int(os.environ.get("WORLD_SIZE", 1)), node.world_size(config)
    if found != wanted and (several or node.trains):
        raise ConfigError(
            f"{stage}: found {found} ranks, allowed: {wanted} (cluster.nodes * cluster.devices_per_node), started by "
            'torchrun (ntasks_per_node of the executor, launcher="torchrun")'
        )
    config = replace(config, launch=replace(config.launch, executor="torchrun" if several else None))
    if ui.main_process():
        preflight.require(config, [stage])
        pipeline.finished(config, node, Path(config.run.dir))
    return Begun(node, config, job.rendezvous(config))


@run.cli.entrypoint(namespace="bielik_nemo")
def train(
    begun: Any, model: Any, data: Any, trainer: Any, log: Any, resume: Any, optim: Any, made_of: Any = None
) -> None:
    """Train a stage of bielik_nemo, as it was built or as its parts were changed.

    Args:
        begun: made by `begin`.
        model: NeMo's.
        data: NeMo's data module.
        trainer: NeMo's.
        log: NeMo's logger.
        resume: from what it goes on.
        optim: NeMo's optimiser.
        made_of: the configs of these six.

    Raises:
        ConfigError: a part was replaced in a way that `made_of` does not know.
        UserError: what else the user can mend.
    """
    parts = dict(zip(PARTS, (model, data, trainer, log, resume, optim), strict=True))
    wanted, built = made_of
    if unknown := [name for name in PARTS if parts[name] is not built[name]]:
        raise ConfigError(f"task.{unknown[0]}: replaced where nobody knows by what, allowed: task.{unknown[0]} = ...")
    own = _module(begun.stage.name).build(begun.config, Path(begun.config.run.dir))
    found = changes(wanted, own)
    for path, value in found.items():
        ui.say(f"{begun.stage.name:<10} task{path} = {value}")
    _carry_out(begun, replace(begun.stage, work=functools.partial(fdl.get_callable(wanted), **parts), changes=found))


@run.cli.entrypoint(namespace="bielik_nemo")
def run_stage(stage: str, config: Any) -> None:
    """Run a stage of bielik_nemo that does not train.

    Args:
        stage: its name.
        config: of the run.

    Raises:
        UserError: what the user can mend.
    """
    begun = begin(stage, configuration.dump(config))
    _carry_out(begun, begun.stage)


@run.cli.entrypoint(namespace="bielik_nemo")
def run_pipeline(config: Any) -> None:
    """Run all stages of bielik_nemo's pipeline.

    Args:
        config: of the run.

    Raises:
        UserError: what the user can mend.
    """
    try:
        pipeline.run(configuration.parse(configuration.dump(config), "task of the pipeline"))
    except Stopped as stopped:
        ui.say(str(stopped))
        raise SystemExit(75) from None


def changes(found: fdl.Buildable, own: fdl.Buildable) -> dict[str, str]:
    """Fields of a task that are not those of the stage's own, with what was found in them."""
    there, expected = _fields(found), _fields(own)
    other = {path: value for path, value in there.items() if expected.get(path) != value}
    inside = tuple(path + mark for path in other for mark in ".[")
    gone = {path: "nothing" for path in expected if path not in there and not path.startswith(inside)}
    return dict(sorted((other | gone).items()))


def _fields(config: fdl.Buildable) -> dict[str, str]:
    """Every callable and value in a config, by path."""
    found = {}
    for value, path in daglish.iterate(config, memoized=False):
        if isinstance(value, fdl.Buildable):
            value = fdl.get_callable(value)
        elif daglish.is_traversable_type(type(value)):
            continue
        named = f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)
        found[daglish.path_str(path)] = named
    return found


def _carry_out(begun: Begun, stage: Stage) -> None:
    """Do this rank's part; with others, none outlives a failure, for they may wait for it in a collective."""
    try:
        job.work(begun.config, stage, begun.ranks)
    except Stopped as stopped:
        ui.say(str(stopped))
        status = 75
    except BaseException:
        if not begun.ranks:
            raise
        traceback.print_exc()
        status = 1
    else:
        status = 0
    if begun.ranks and status != 1:
        begun.ranks.part()
    sys.stdout.flush()
    sys.stderr.flush()
    if begun.ranks and status:
        os._exit(status)
    elif status:
        raise SystemExit(status)


def _here(config: Config) -> Config:
    """The configuration with the run's directory as it is seen from here."""
    return replace(config, run=replace(config.run, dir=os.path.abspath(config.run.dir)))


def _module(stage: str) -> Any:
    return importlib.import_module(f"bielik_nemo.stages.{stage}")
