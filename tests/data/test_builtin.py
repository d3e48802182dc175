from pathlib import Path

import pytest
from safetensors import SafetensorError

from bielik_nemo.data import tiny
from bielik_nemo.data.builtin import new_directory, resolve_model_source
from bielik_nemo.errors import CheckpointError


def test_a_directory_is_itself(tmp_path: Path):
    assert resolve_model_source(str(tmp_path), tmp_path / "work") == tmp_path
    assert not (tmp_path / "work").exists()


def test_a_builtin_is_built_once(tmp_path: Path, monkeypatch):
    built = []

    def build(directory: Path) -> None:
        built.append(directory)
        directory.mkdir(parents=True)

    monkeypatch.setattr(tiny, "build", build)
    for _ in range(2):
        assert resolve_model_source("builtin:tiny", tmp_path / "work") == tmp_path / "work" / "tiny"
    assert built == [tmp_path / "work" / "tiny"]


@pytest.mark.parametrize("source", ["", "no/such/dir", "builtin:smolm2", "speakleash/Bielik-11B-v3.0"])
def test_anything_else_names_the_key_what_was_found_and_what_is_allowed(source: str, tmp_path: Path):
    with pytest.raises(CheckpointError) as caught:
        resolve_model_source(source, tmp_path)
    message = str(caught.value)
    assert message.startswith("model.source: ")
    assert repr(source) in message
    assert "builtin:smollm2 or builtin:tiny" in message
    assert ("did you mean builtin:smollm2?" in message) == (source == "builtin:smolm2")


def test_a_file_is_not_a_checkpoint(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no such directory"):
        resolve_model_source(str(tmp_path / "config.json"), tmp_path)


def test_new_directory_appears_whole_or_not_at_all(tmp_path: Path):
    target = tmp_path / "runs" / "model"
    with pytest.raises(KeyError), new_directory(target) as unfinished:
        (unfinished / "half").write_text("x")
        raise KeyError
    assert list((tmp_path / "runs").iterdir()) == []

    with new_directory(target) as unfinished:
        (unfinished / "whole").write_text("x")
        assert not target.exists()
    assert [file.name for file in target.iterdir()] == ["whole"]
    assert list((tmp_path / "runs").iterdir()) == [target]
    assert target.stat().st_mode == (tmp_path / "runs").stat().st_mode  # as readable as any directory made here


def test_new_directory_does_not_replace_files(tmp_path: Path):
    (tmp_path / "kept").write_text("x")
    with pytest.raises(CheckpointError, match="cannot write the checkpoint"), new_directory(tmp_path):
        pass
    assert (tmp_path / "kept").read_text() == "x"


@pytest.mark.parametrize("kind", [OSError, SafetensorError])
def test_a_full_disk_is_one_clear_error(tmp_path: Path, kind: type[Exception]):
    """Plain files fail with `OSError`; safetensors has an error of its own that is not one."""
    with pytest.raises(CheckpointError, match=r"model: cannot write the checkpoint: .*No space left"):
        with new_directory(tmp_path / "model"):
            raise kind("No space left on device")
    assert list(tmp_path.iterdir()) == []
