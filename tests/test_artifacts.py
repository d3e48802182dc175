from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from bielik_nemo import artifacts
from bielik_nemo.artifacts import Manifest
from bielik_nemo.errors import DataError, UserError


def make_manifest(**changes) -> Manifest:
    values = {
        "stage": "prune",
        "fingerprint": "f" * 64,
        "config": {"prune.target": {"num_layers": 3}},
        "inputs": {"score": "1"},
        "sources": {},
        "outputs": {},
        "metrics": {"loss": 2.5},
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 1.5,
    }
    return Manifest(**values | changes)


def test_a_written_file_is_old_or_new_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "deeper" / "a.txt"
    artifacts.write_text(path, "old ł\n")
    assert path.read_text(encoding="utf-8") == "old ł\n"

    def full(self: Path, text: str, encoding: str) -> None:
        with open(self, "w") as stream:
            stream.write(text[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError):
            artifacts.write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old ł\n"
    assert [each.name for each in path.parent.iterdir()] == ["a.txt"]


def test_json_goes_there_and_back(tmp_path: Path):
    value = {"ł": [1, 2.5, None], "b": {"c": True}}
    artifacts.write_json(tmp_path / "a.json", value)
    assert artifacts.read_json(tmp_path / "a.json") == value
    assert "ł" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_json_that_cannot_be_read_names_the_file(tmp_path: Path):
    with pytest.raises(DataError, match=r"a\.json: No such file"):
        artifacts.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match=r"a\.json: not JSON"):
        artifacts.read_json(tmp_path / "a.json")


def test_a_digest_knows_values_and_not_the_order_of_keys():
    assert artifacts.digest({"a": 1, "b": [1, 2]}) == artifacts.digest({"b": [1, 2], "a": 1})
    different = [{"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, {"a": [1, 2]}, {"a": [2, 1]}, {"a": None}]
    assert len({artifacts.digest(value) for value in different}) == len(different)


def test_digest_of_a_file_is_its_sha256(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert artifacts.file_digest(tmp_path / "a").startswith("ba7816bf8f01cfea")


def test_files_of_the_same_size_and_time_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = [tmp_path / "b" / "two", tmp_path / "one"]
    for path in files:
        artifacts.write_text(path, path.name)
    first = artifacts.digest_files(tmp_path, files)
    assert list(first) == ["b/two", "one"]
    assert first["one"]["size"] == 3 and first["one"]["mtime_ns"] == files[1].stat().st_mtime_ns
    read: list[str] = []
    digest = artifacts.file_digest
    monkeypatch.setattr(artifacts, "file_digest", lambda path: read.append(path.name) or digest(path))
    assert artifacts.digest_files(tmp_path, files, first) == first
    assert read == []
    os.utime(files[1], ns=(0, 0))  # another time: read, and found to be the same
    again = artifacts.digest_files(tmp_path, files, first)
    assert read == ["one"] and again["one"]["sha256"] == first["one"]["sha256"]
    files[0].write_text("longer")  # another size
    assert artifacts.digest_files(tmp_path, files, again)["b/two"]["sha256"] != first["b/two"]["sha256"]
    assert read == ["one", "two"]


def test_the_digest_of_content_does_not_depend_on_time(tmp_path: Path):
    path = tmp_path / "a"
    path.write_text("x")
    first = artifacts.digest_files(tmp_path, [path])
    os.utime(path, ns=(5, 5))
    second = artifacts.digest_files(tmp_path, [path])
    assert first != second and artifacts.content_digest(first) == artifacts.content_digest(second)
    renamed = artifacts.digest_files(tmp_path, [path.rename(tmp_path / "b")])
    path.write_text("y")
    changed = artifacts.digest_files(tmp_path, [path])
    assert len({artifacts.content_digest(files) for files in (first, renamed, changed)}) == 3


def test_a_manifest_goes_there_and_back(tmp_path: Path):
    manifest = make_manifest()
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert manifest.packages["torch"] and manifest.version


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"stage": "prune"}', '{"stage": "prune", "other": 1}'])
def test_what_is_no_manifest_is_none(content: str | None, tmp_path: Path):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    assert Manifest.read(tmp_path) is None


def test_a_manifest_is_intact_while_every_output_has_its_size(tmp_path: Path):
    (tmp_path / "weights").mkdir()
    path = tmp_path / "weights" / "a"
    path.write_bytes(b"12345")
    manifest = make_manifest(outputs=artifacts.digest_files(tmp_path, [path]))
    assert manifest.intact(tmp_path)
    os.truncate(path, 4)
    assert not manifest.intact(tmp_path)
    path.unlink()
    assert not manifest.intact(tmp_path)
    path.mkdir()
    assert not manifest.intact(tmp_path)


def test_the_digest_of_outputs_is_that_of_their_content(tmp_path: Path):
    (tmp_path / "a").write_text("x")
    outputs = artifacts.digest_files(tmp_path, [tmp_path / "a"])
    assert make_manifest(outputs=outputs).output_digest() == artifacts.content_digest(outputs)
    assert make_manifest(outputs=outputs, seconds=9.0).output_digest() == artifacts.content_digest(outputs)


def test_work_under_another_fingerprint_is_set_aside_and_comes_back(tmp_path: Path):
    one, two = "1" * 64, "2" * 64
    directory = artifacts.open_stage(tmp_path, "prune", one)
    assert directory == tmp_path / "prune" and (directory / "fingerprint").read_text() == f"{one}\n"
    (directory / "work").write_text("first")
    assert (artifacts.open_stage(tmp_path, "prune", one) / "work").read_text() == "first"
    assert not (artifacts.open_stage(tmp_path, "prune", two) / "work").exists()
    (directory / "work").write_text("second")
    assert (artifacts.open_stage(tmp_path, "prune", one) / "work").read_text() == "first"
    assert (artifacts.open_stage(tmp_path, "prune", two) / "work").read_text() == "second"
    assert [path.name for path in (tmp_path / "superseded").iterdir()] == ["prune-111111111111"]
    # Another stage has its own place.
    assert not (artifacts.open_stage(tmp_path, "score", one) / "work").exists()


def test_a_directory_of_unknown_origin_is_set_aside(tmp_path: Path):
    (tmp_path / "prune").mkdir()
    (tmp_path / "prune" / "mine").write_text("kept")
    artifacts.open_stage(tmp_path, "prune", "1" * 64)
    assert [path.name for path in (tmp_path / "prune").iterdir()] == ["fingerprint"]
    assert (tmp_path / "superseded" / "prune-unknown" / "mine").read_text() == "kept"


def test_one_process_at_a_time_in_a_run_directory(tmp_path: Path):
    run_dir = tmp_path / "run"
    code = f"""
import pathlib, time
from bielik_nemo import artifacts
with artifacts.locked(pathlib.Path({str(run_dir)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=r"run\.dir=.*: another process"), artifacts.locked(run_dir):
            pass
    finally:
        other.kill()  # however it ends
        other.wait()
    with artifacts.locked(run_dir):
        pass


def test_a_child_that_inherits_the_lock_holds_it_too(tmp_path: Path):
    with artifacts.locked(tmp_path) as lock:
        child = os.dup(lock)
    with pytest.raises(UserError), artifacts.locked(tmp_path):
        pass
    os.close(child)
    with artifacts.locked(tmp_path):
        pass


def caused(inner: BaseException) -> BaseException:
    try:
        raise RuntimeError("saving failed") from inner
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "error, full",
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (OSError(errno.EIO, "x"), False),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"), True),
        (RuntimeError("[enforce fail at inline_container.cc:145] . file not found"), False),
        (caused(OSError(errno.ENOSPC, "x")), True),
        (caused(caused(OSError(errno.ENOSPC, "x"))), True),
        (caused(ValueError("x")), False),
        (None, False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error: BaseException | None, full: bool):
    assert artifacts.disk_full(error) is full


def test_the_manifest_of_an_installed_package_names_versions_and_no_paths():
    versions = artifacts.package_versions()
    assert {"torch", "nemo_toolkit", "megatron-core", "nvidia-modelopt"} <= set(versions)
    assert all(os.sep not in text for text in [*versions.values(), artifacts.code_version()])
    json.dumps(versions)
