"""Snapshots of runs that were killed and stopped (see ranks.py), and what a resumed run keeps of those before it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from bielik_nemo.engine import snapshots


def content(directory: Path) -> dict[str, bytes]:
    """The weights of a checkpoint; its metadata has the id of the save."""
    return {path.name: path.read_bytes() for path in directory.glob("weights/*.distcp")}


@pytest.mark.parametrize("layout", ["resumed", "tp2"], indirect=True)
def test_a_killed_run_ends_with_the_snapshots_of_one_that_was_not(layout):
    """Every third of six steps, killed in the sixth, resumed from the fourth; the last is the result."""
    assert layout["distill resumed"] == "done"
    here = layout.path / "resumed"
    found = snapshots.find(here / "snapshots")
    assert [path.name for path in found] == ["3", "6"] == sorted(path.name for path in (here / "snapshots").iterdir())
    assert content(found[1]) == content(here / "megatron") != content(found[0])
    assert content(found[0])


def test_oldest_first(tmp_path: Path):
    for name in ("100", "20", "3", "9.partial", "left"):
        (tmp_path / name).mkdir()
    assert [path.name for path in snapshots.find(tmp_path)] == ["3", "20", "100"]
    assert snapshots.find(tmp_path / "none") == []


@pytest.mark.parametrize("step, kept", [(0, set()), (4, {"2", "4"}), (9, {"2", "4", "6"})])
def test_steps_that_are_done_again_lose_theirs(step: int, kept: set[str], tmp_path: Path):
    """And what a kill left half-written goes."""
    for name in ("2", "4", "6", "8.partial"):
        (tmp_path / "snapshots" / name / "weights").mkdir(parents=True)
    callback = snapshots.Snapshots(str(tmp_path / "snapshots"), 2)
    callback.on_train_start(SimpleNamespace(global_step=step), None)
    assert {path.name for path in (tmp_path / "snapshots").iterdir()} == kept


def test_one_every_so_many_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved = []
    monkeypatch.setattr(snapshots.checkpoint, "save", lambda model, path: saved.append((model, path.name)))
    callback = snapshots.Snapshots(str(tmp_path), 3)
    for step in range(1, 8):
        callback.on_train_batch_end(SimpleNamespace(global_step=step), SimpleNamespace(core_module="model"), None)
    assert saved == [("model", "3"), ("model", "6")]
