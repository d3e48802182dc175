from __future__ import annotations

from pathlib import Path

import pytest

from bielik_nemo.engine import cpu

cpu.enable()

from bielik_nemo.engine import resume  # noqa: E402


def checkpoint(directory: Path, name: str, metadata: bool = True, unfinished: bool = False) -> Path:
    weights = directory / name / "weights"
    weights.mkdir(parents=True)
    (weights / "__0_0.distcp").write_bytes(b"weights")
    if metadata:
        (weights / ".metadata").write_bytes(b"metadata")
    if unfinished:
        (directory / f"{name}-unfinished").touch()
    return directory / name


def test_finished_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path):
    """By number: as text, 9 would come after 11 and 100."""
    made = [checkpoint(tmp_path, f"step={step}") for step in (9, 100, 11)]
    checkpoint(tmp_path, "step=200", unfinished=True)
    checkpoint(tmp_path, "step=300", metadata=False)
    checkpoint(tmp_path, "step=400-last")
    (tmp_path / "step=500").write_text("a file")
    assert resume.finished(tmp_path) == [made[0], made[2], made[1]]
    assert resume.finished(tmp_path / "none") == []


def test_the_newest_finished_checkpoint_is_restored(tmp_path: Path):
    found = resume.Resume(resume_if_exists=True, resume_from_directory=str(tmp_path))
    assert found.get_trainer_ckpt_path() is None
    checkpoint(tmp_path, "step=9")
    checkpoint(tmp_path, "step=11")
    checkpoint(tmp_path, "step=13", unfinished=True)
    assert found.get_trainer_ckpt_path() == tmp_path / "step=11" / "weights"


@pytest.mark.parametrize("rank, left", [("0", ["step=11"]), ("1", ["step=11", "step=7", "step=9"])])
def test_one_checkpoint_of_earlier_attempts_stays(rank: str, left: list[str], tmp_path: Path, monkeypatch):
    """All ranks know which one; the first removes the others."""
    monkeypatch.setenv("RANK", rank)
    for step in (7, 11, 9):
        checkpoint(tmp_path, f"step={step}")
    callback = resume.NewestCheckpoint(dirpath=tmp_path, monitor=None, save_top_k=1)
    callback.nemo_topk_check_previous_run()
    assert callback.best_model_path == str(tmp_path / "step=11")
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_a_first_attempt_has_nothing_to_find(tmp_path: Path):
    callback = resume.NewestCheckpoint(dirpath=tmp_path / "none", monitor=None, save_top_k=1)
    callback.nemo_topk_check_previous_run()
    assert callback.best_model_path == ""
