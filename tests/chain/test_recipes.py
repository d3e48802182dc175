"""Imported recipes leave what the pipeline's stage leaves, and say what was changed in them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nemo_run as run
import pytest

from bielik_nemo import pipeline
from bielik_nemo.launch import records
from bielik_nemo.recipes.recipe import Recipe
from bielik_nemo.stages import GRAPH


def execute(task: run.Partial, executor: run.LocalExecutor, home: Path) -> None:
    """Run a task as NeMo-Run does."""
    with records.home(home), run.Experiment("recipe", executor=executor) as experiment:
        experiment.add(task, name="task")
        experiment.run(detach=False)


@pytest.fixture(autouse=True)
def this_python(monkeypatch):
    """NeMo-Run starts the `python` of the path."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def test_an_imported_task_leaves_what_the_stage_leaves(chain, tmp_path):
    run_dir = chain.copy("recipe", before="distill")
    task = Recipe("tiny").distill(run_dir=str(run_dir), overrides=chain.overrides)
    execute(task, run.LocalExecutor(), tmp_path)
    assert chain.result(run_dir, "distill") == chain.result(chain.finished, "distill")
    there, here = (chain.manifest(each, "distill") for each in (chain.finished, run_dir))
    assert (here.fingerprint, here.inputs, here.changes) == (there.fingerprint, there.inputs, {})


def test_a_changed_task_on_two_ranks_is_told_apart(chain, tmp_path):
    """Three steps instead of six: what needs the result takes it, the pipeline's own stage would run again."""
    run_dir = chain.copy("changed", before="distill")
    made = {"run_dir": str(run_dir), "overrides": [*chain.overrides, "parallel=tp2"]}
    task = Recipe("tiny").distill(**made)
    task.trainer.max_steps = 3
    executor = run.LocalExecutor(ntasks_per_node=2, launcher="torchrun")
    execute(task, executor, tmp_path)
    left = chain.manifest(run_dir, "distill")
    assert (left.changes, left.metrics["step"]) == ({".trainer.max_steps": "3"}, 3)
    config = Recipe("tiny").config(**made)
    assert pipeline.finished(config, GRAPH["distill"], run_dir)[0] is None
    *_, read = pipeline.finished(config, GRAPH["export"], run_dir)
    assert read["inputs"]["distill"] == left.output_digest()
