"""Tasks are made without any file of a run, travel as text, and tell what was changed in them.

tests/chain/test_recipes.py runs them.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import fiddle as fdl
import nemo_run as run
import pytest
from nemo_run.cli.api import resolve_factory
from nemo_run.cli.cli_parser import parse_factory
from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

from bielik_nemo import config as configuration
from bielik_nemo.config import compose
from bielik_nemo.errors import ConfigError
from bielik_nemo.recipes import bielik_minitron_7b, bielik_pl_minitron_7b, smollm2, task
from bielik_nemo.stages.nodes import known

TRAINED = ("distill", "sft", "dpo", "grpo")
OTHERS = ("prune", "export", "pipeline")
NOWHERE = Path("/nowhere/run")
GIVEN = ["model.source=/nowhere/model", "optim.lr=1e-4"]


def made(name: str, **given) -> run.Partial:
    return getattr(bielik_minitron_7b, name)(run_dir=str(NOWHERE), overrides=GIVEN, **given)


def sent(found: run.Partial) -> run.Partial:
    """What a worker gets."""
    text = ZlibJSONSerializer()
    return text.deserialize(text.serialize(found))


def own(found: task.Task) -> run.Partial:
    """The stage's task, as a worker makes it from the settings that came with this one."""
    stage = importlib.import_module(f"bielik_nemo.stages.{found.begun.stage}")
    return stage.build(configuration.parse(found.begun.settings, "task"), NOWHERE)


@pytest.mark.parametrize("name", TRAINED)
def test_training_is_that_of_the_stage_until_it_is_changed(name: str):
    """Two nodes of four: eight ranks. A number of steps that data decide is replaced by one that they do not."""
    found = made(name, num_nodes=2, num_gpus_per_node=4)
    assert (found.trainer.num_nodes, found.trainer.devices) == (2, 4)
    assert task.changes(sent(found).made_of, own(found)) == {}
    found.trainer.max_steps, found.optim.config.lr = 100, 2e-5
    del found.trainer.callbacks[1]
    arrived = sent(found)
    assert known(arrived.trainer.max_steps) == 100
    told = task.changes(arrived.made_of, own(found))
    assert {".trainer.max_steps": "100", ".optim.config.lr": "2e-05"}.items() <= told.items()
    assert all(path.startswith((".trainer.callbacks[", ".trainer.max_steps", ".optim.config.lr")) for path in told)
    assert any("callbacks" in path for path in told)


def test_the_defaults_are_those_of_the_experiment():
    config = compose("bielik_minitron_7b", GIVEN)
    found = made("distill")
    assert configuration.parse(found.begun.settings, "task").optim == config.optim
    assert (found.optim.config.lr, found.trainer.max_steps) == (1e-4, config.trainer.max_steps)
    assert found.data.micro_batch_size == config.data.micro_batch_size


def test_a_part_may_be_replaced_as_a_whole():
    """`made_of` follows; in a copy that is no longer a Task it cannot, and the worker refuses."""
    found = made("distill")
    found.optim = run.Config(configuration.Run, name="mine")
    assert sent(found).made_of.optim.name == "mine"
    plain = fdl.cast(run.Partial, found)
    plain.optim = run.Config(configuration.Run, name="other")
    parts = {name: object() for name in task.PARTS}
    with pytest.raises(ConfigError, match=r"task\.optim: replaced where nobody knows by what"):
        task.train(None, **parts, made_of=(plain.made_of, parts | {"optim": object()}))


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_task_is_its_configuration(name: str):
    found = made(name)
    found.config.prune.target.num_layers = 44
    config = fdl.build(sent(found)).keywords["config"]
    expected = compose("bielik_minitron_7b", [*GIVEN, f"run.dir={NOWHERE}", "prune.target.num_layers=44"])
    assert config == expected


def test_mistakes_are_told_where_the_task_is_made():
    with pytest.raises(ConfigError, match=r"optim\.lrr: unknown key"):
        bielik_minitron_7b.distill(overrides=["optim.lrr=1"])


def test_as_many_ranks_as_configured(monkeypatch):
    settings = made("distill", num_nodes=1, num_gpus_per_node=2).begun.settings
    with pytest.raises(ConfigError, match=r"distill: found 1 ranks, allowed: 2 .*torchrun"):
        task.begin("distill", settings)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=r"distill: found 4 ranks, allowed: 2"):
        task.begin("distill", settings)


def test_nemo_runs_command_line_knows_them():
    for target, names in ((task.train, TRAINED), (task.run_stage, OTHERS[:2]), (task.run_pipeline, OTHERS[2:])):
        for name in names:
            found = resolve_factory(target, f"bielik_minitron_7b_{name}")(run_dir=str(NOWHERE), overrides=GIVEN)
            assert fdl.get_callable(found) is target
    assert resolve_factory(task.train, "smollm2_distill").wrapped == smollm2.distill
    adapt = resolve_factory(task.train, "bielik_pl_minitron_7b_adapt")
    assert adapt.wrapped == bielik_pl_minitron_7b.adapt and adapt().model.boundary_layers == 2
    line = "bielik_minitron_7b_prune(run_dir=/x, num_nodes=4, overrides=['optim.lr=1e-4'])"
    config = parse_factory(task.run_stage, "", task.run_stage, line).config
    assert (config.run.dir, config.cluster.nodes, config.optim.lr) == ("/x", 4, 1e-4)
