"""The code that is sent is the code that is here: whole, named by its content, with what git says of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import bielik_nemo
from bielik_nemo import artifacts
from bielik_nemo.config import Launch
from bielik_nemo.errors import ConfigError
from bielik_nemo.launch import code


@pytest.fixture
def package(tmp_path) -> Path:
    """A repository with a committed package of one's own."""
    root = tmp_path / "mine"
    (root / "my_rewards").mkdir(parents=True)
    (root / "my_rewards" / "__init__.py").write_text("ONE = 1\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "-c", "user.name=n", "-c", "user.email=e", "commit", "--quiet", "-m", "first")
    return root / "my_rewards"


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True)


def imported(directory: Path, statement: str) -> str:
    """What a fresh Python with only this directory prints; it runs elsewhere."""
    command = [sys.executable, "-c", f"import os; {statement}"]
    environment = {"PYTHONPATH": str(directory), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, cwd="/", env=environment, check=True, capture_output=True, text=True).stdout.strip()


def test_a_copy_runs_and_has_the_configuration_in_it(tmp_path):
    sent = code.ship(Launch(), tmp_path / "code")
    assert sent.directory == tmp_path / "code" / sent.digest[:12]
    assert not list(sent.directory.rglob("__pycache__"))
    assert imported(sent.directory, "import bielik_nemo; print(bielik_nemo.__file__)").startswith(str(sent.directory))
    assert (sent.directory / "bielik_nemo" / "conf" / "experiment" / "tiny.yaml").is_file()
    assert [path.name for path in (tmp_path / "code").iterdir()] == [sent.digest[:12]]


def test_the_same_code_is_sent_once_and_a_copy_that_was_changed_again(tmp_path):
    first = code.ship(Launch(), tmp_path)
    file = first.directory / "bielik_nemo" / "errors.py"
    before = file.read_text()
    assert code.ship(Launch(), tmp_path) == first
    file.write_text("broken")
    assert code.ship(Launch(), tmp_path) == first and file.read_text() == before


def test_packages_of_ones_own_are_sent_and_what_is_not_committed_is_told(tmp_path, package):
    launch = Launch(packages=[str(package)])
    clean = code.ship(launch, tmp_path / "code")
    assert not any("my_rewards" in line for line in clean.changes)
    (package / "__init__.py").write_text("ONE = 2\n")
    (package / "new.py").write_text("")
    sent = code.ship(launch, tmp_path / "code")
    assert sent.digest != clean.digest
    assert imported(sent.directory, "import my_rewards, my_rewards.new; print(my_rewards.ONE)") == "2"
    assert [line for line in sent.changes if "my_rewards" in line] == [
        " M my_rewards/__init__.py",
        "?? my_rewards/new.py",
    ]
    record = json.loads((sent.directory / artifacts.CODE).read_text())
    assert record == {"digest": sent.digest, "commit": sent.commit, "changes": list(sent.changes)}


def test_what_is_not_committed_can_be_refused(tmp_path, package):
    (package / "new.py").write_text("")
    with pytest.raises(ConfigError, match=r"^launch\.changes: found \d+ files not committed \(.*\), allowed: none"):
        code.ship(Launch(changes="refuse", packages=[str(package)]), tmp_path / "code")
    assert not (tmp_path / "code").exists()


def test_a_package_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match=r"^launch\.packages\[0\]: found '.*', allowed: a directory with an __init__"):
        code.ship(Launch(packages=[str(tmp_path)]), tmp_path / "code")


def test_a_job_refuses_other_code(tmp_path):
    """The same check, in the copy: with its own digest, with another, and after an edit."""
    sent = code.ship(Launch(), tmp_path)
    check = "from bielik_nemo.launch import code; from bielik_nemo.errors import UserError\n"
    check += "try:\n    code.check(); print('good')\nexcept UserError as error:\n    print(error)"

    def said(digest: str) -> str:
        return imported(sent.directory, f"os.environ['{code.VARIABLE}'] = '{digest}'; exec({check!r})")

    assert said(sent.digest) == "good"
    assert said("0" * 64).startswith(f"{code.VARIABLE}: found code {sent.digest[:12]} in ")
    (sent.directory / "bielik_nemo" / "errors.py").open("a").write("# edited\n")
    assert said(sent.digest).endswith(f"allowed: {sent.digest[:12]}, which was checked")


def test_this_package_is_no_copy(monkeypatch):
    monkeypatch.delenv(code.VARIABLE, raising=False)
    code.check()
    monkeypatch.setenv(code.VARIABLE, "0" * 64)
    with pytest.raises(Exception, match=r"found code none that w"):
        code.check()


def test_a_manifest_names_the_copy(tmp_path):
    sent = code.ship(Launch(), tmp_path)
    found = imported(sent.directory, "from bielik_nemo import artifacts; print(artifacts.code_version())")
    assert found.endswith(f"sha256:{sent.digest[:12]}") and found.startswith(sent.commit)
    assert Path(bielik_nemo.__file__).exists()
