from __future__ import annotations

import io
import json
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from bielik_nemo import ui
from bielik_nemo.engine import cpu, integrity

cpu.enable()

from bielik_nemo.engine import resume  # noqa: E402


def checkpoint(directory: Path, name: str, unfinished: bool = False) -> Path:
    weights = directory / name / "weights"
    weights.mkdir(parents=True)
    (weights / "__0_0.distcp").write_bytes(b"weights of " + name.encode())
    (weights / ".metadata").write_bytes(pickle.dumps({}))
    integrity.seal(directory / name)
    if unfinished:
        (directory / f"{name}-unfinished").touch()
    return directory / name


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process group: what this rank found is what all found."""
    monkeypatch.setattr(integrity.distributed, "merged", lambda own: own)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    monkeypatch.setattr(ui, "_terminal", io.StringIO())
    return ui._terminal


def test_finished_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path):
    """By number: as text, 9 would come after 11 and 100."""
    made = [checkpoint(tmp_path, f"step={step}") for step in (9, 100, 11)]
    checkpoint(tmp_path, "step=200", unfinished=True)
    checkpoint(tmp_path, "step=400-last")
    (tmp_path / "step=300").mkdir()
    (tmp_path / "step=500").write_text("a file")
    assert resume.finished(tmp_path) == [made[0], made[2], made[1]]
    assert resume.finished(tmp_path / "none") == []


def find(directory: Path) -> Path | None:
    found = resume.Resume(resume_if_exists=True, resume_from_directory=str(directory)).get_trainer_ckpt_path()
    return found and found.parent


def test_the_newest_finished_checkpoint_is_restored(tmp_path: Path, said):
    assert find(tmp_path) is None
    checkpoint(tmp_path, "step=9")
    checkpoint(tmp_path, "step=11")
    checkpoint(tmp_path, "step=13", unfinished=True)
    assert find(tmp_path) == tmp_path / "step=11"
    assert said.getvalue() == "  goes on from the checkpoint of step 12\n"


def _foreign(weights: Path) -> None:
    """What would be code, under a digest that fits."""
    (weights / ".metadata").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    integrity.seal(weights.parent)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "truncated": (lambda w: (w / "__0_0.distcp").write_bytes(b"wei"), "__0_0.distcp: found 3 bytes, written were 18"),
    "missing": (lambda w: (w / "__0_0.distcp").unlink(), "__0_0.distcp: No such file"),
    "flipped": (lambda w: _flip(w / "__0_0.distcp"), "__0_0.distcp: is not what was written"),
    "metadata flipped": (lambda w: _flip(w / ".metadata"), ".metadata: "),
    "no metadata": (lambda w: (w / ".metadata").unlink(), "not a finished Megatron checkpoint"),
    "foreign metadata": (_foreign, "names os.system, which is not part"),
    "no digests": (lambda w: (w.parent / "digests.json").unlink(), "digests.json: No such file"),
    "digests cut": (lambda w: (w.parent / "digests.json").write_text('{"weights'), "digests.json: not JSON"),
    "digests odd": (lambda w: (w.parent / "digests.json").write_text('{"a": 1}'), "digests.json|/a"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_named(damage: str, tmp_path: Path, said):
    spoil, reason = DAMAGES[damage]
    good = checkpoint(tmp_path, "step=9")
    spoil(checkpoint(tmp_path, "step=11") / "weights")
    assert find(tmp_path) == good
    first, second = said.getvalue().splitlines()
    assert first.startswith(f"  the checkpoint of step 12 is passed over: {tmp_path / 'step=11'}")
    assert re.search(reason, first)
    assert second == "  goes on from the checkpoint of step 10"


def test_without_a_good_one_training_starts_from_the_beginning(tmp_path: Path, said):
    for name in ("step=9", "step=11"):
        (checkpoint(tmp_path, name) / "weights" / "__0_0.distcp").unlink()
    assert find(tmp_path) is None
    assert said.getvalue().splitlines()[-1] == "  no good checkpoint is left: training starts from the beginning"


def test_digests_name_every_file_and_each_is_read_by_the_rank_that_wrote_it(tmp_path: Path, monkeypatch):
    made = checkpoint(tmp_path, "step=9")
    assert set(json.loads((made / "digests.json").read_text())) == {"weights/.metadata", "weights/__0_0.distcp"}
    (made / "weights" / "__1_0.distcp").write_bytes(b"other")
    parts = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(integrity.distributed, "merged", lambda own: parts.update({rank: own}) or own)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        integrity.seal(made)
    assert [set(parts[rank]) for rank in "01"] == [
        {"weights/.metadata", "weights/__0_0.distcp"},
        {"weights/__1_0.distcp"},
    ]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_two_checkpoints_of_earlier_attempts_stay(rank: str, tmp_path: Path, monkeypatch):
    """All ranks know which ones; the first removes those before, and sets aside what was passed over."""
    monkeypatch.setenv("RANK", rank)
    for step in (5, 7, 11, 9, 13):
        checkpoint(tmp_path, f"step={step}")
    before = sorted(path.name for path in tmp_path.iterdir())
    callback = resume.Checkpoints(2, dirpath=tmp_path)
    callback.resumed = "step=11"
    callback.nemo_topk_check_previous_run()
    assert callback.best_model_path == str(tmp_path / "step=11")
    assert callback.kth_best_model_path == str(tmp_path / "step=9")
    assert {Path(path).name: int(step) for path, step in callback.best_k_models.items()} == {"step=9": 9, "step=11": 11}
    left = ["step=11", "step=13-damaged", "step=9"] if rank == "0" else before
    assert sorted(path.name for path in tmp_path.iterdir()) == left


def test_a_first_attempt_has_nothing_to_find(tmp_path: Path):
    callback = resume.Checkpoints(2, dirpath=tmp_path / "none")
    callback.resumed = ""
    callback.nemo_topk_check_previous_run()
    assert (callback.best_model_path, callback.best_k_models) == ("", {})


def test_ranks_must_go_on_from_the_same_checkpoint(tmp_path: Path, monkeypatch):
    """Each looks for itself; a file that only one of them cannot read would mix two states."""

    def gather(each: list, own: str) -> None:
        each[:] = [own, "step=9"]

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(resume.torch.distributed, "all_gather_object", gather)
    callback = resume.Checkpoints(2, dirpath=tmp_path)
    trainer = SimpleNamespace(ckpt_path=tmp_path / "step=11" / "weights")
    with pytest.raises(resume.CheckpointError, match=r"different checkpoints: step=11 \(rank 0\), step=9 \(rank 1\)"):
        callback.on_train_start(trainer, None)


def test_nemo_still_takes_a_checkpoint_by_its_mark_alone():
    """Why `Resume` looks for itself; when this fails, NeMo may do."""
    import inspect

    source = inspect.getsource(resume.nl.AutoResume._find_trainer_ckpt_path)
    assert "*last" in source and "digest" not in source and "checksum" not in source
