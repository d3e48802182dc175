"""The wheel, installed without the clone, and a project beside it that uses the command line, the groups and recipes.

The environment has both wheels of its own; what they depend on it takes from this one, so that nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from bielik_nemo import artifacts

ROOT = Path(__file__).parents[1]
PROJECT = ROOT / "tests" / "example_project"


class Installed:
    """An environment, and a folder to work in."""

    def __init__(self, base: Path):
        self.base, self.bin = base, base / "env" / "bin"
        self.environment = {**os.environ, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}
        self.environment |= {"NEMORUN_HOME": str(base / "home")}
        self.environment.pop("PYTHONPATH", None)

    def __call__(self, *command: str) -> str:
        """What a command prints."""
        settings = {"cwd": self.base, "env": self.environment, "capture_output": True, "text": True}
        done = subprocess.run([self.bin / command[0], *command[1:]], **settings)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """bielik_nemo and the example project, from their wheels."""
    base = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    tracked = ("bielik_nemo", "conf", "pyproject.toml", "README.md", "LICENSE")
    for name in tracked:  # building leaves files beside its sources
        copied = base / "tree" / name
        copied.parent.mkdir(exist_ok=True)
        shutil.copytree(ROOT / name, copied) if (ROOT / name).is_dir() else shutil.copy(ROOT / name, copied)
    shutil.copytree(PROJECT, base / "project")
    for tree in ("tree", "project"):
        subprocess.run(
            [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", base / "wheels", base / tree], check=True
        )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", base / "env"], check=True)
    python = base / "env" / "bin" / "python"
    wheels = sorted((base / "wheels").glob("*.whl"))
    subprocess.run([*pip, "--python", python, "install", *offline, *wheels], check=True)
    (own,) = (base / "env" / "lib").glob("python*/site-packages")
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(base)


def test_the_wheel_has_all_that_it_needs(installed):
    """Code and configuration are in the environment, not in the clone."""
    code = "import bielik_nemo, bielik_nemo.conf; print(bielik_nemo.__file__, *bielik_nemo.conf.__path__)"
    places = installed("python", "-c", code).split()
    assert all(place.startswith(str(installed.base / "env")) for place in places), places
    shipped = {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml") if "local" not in path.parts}
    assert {path for path in shipped if not (Path(places[1]) / path).is_file()} == set()
    code = "from importlib.metadata import entry_points as e; print(*(p.value for p in e(group='nemo_run.cli')))"
    assert "bielik_nemo.recipes" in installed("python", "-c", code).split()


def test_the_command_line_with_groups_of_the_project(installed):
    """Jobs of an experiment that is the project's, whose reward is sent with them."""
    project = installed.base / "project" / "example_project"
    given = ["cluster=slurm_bare", "cluster.nodes=1", "cluster.devices_per_node=1", "cluster.account=mine"]
    given += ["cluster.partition=gpu", f"launch.packages=[{project}]", "launch.dry_run=true", "run.dir=queued"]
    own = "hydra.searchpath=[pkg://example_project.conf]"
    told = installed("bielik-nemo", "submit", own, "experiment=brief", *given)
    assert "#SBATCH --account=mine" in told
    launch = installed.base / "queued" / "launch"
    assert (launch / "dry_run" / "grpo.sh").is_file()
    assert list(launch.glob("code/*/example_project/rewards.py"))


def test_a_hydra_application_with_our_groups(installed):
    """conf/app.yaml: the tiny model's 4 layers cut to 3, 24 steps by trainer=smoke, here 50 at SmolLM2's rate."""
    told = installed("python", "-m", "example_project.app")
    assert told.startswith("a smaller model: ") and " 24 steps at " in told
    told = installed("python", "-m", "example_project.app", "model.trainer.max_steps=50", "model.optim.lr=3e-4")
    assert " 50 steps at 0.0003" in told


def test_imported_recipes(installed, tiny_hf):
    """A change of a published recipe; of the project's own two stages run, whose tasks its reward has judged.

    The built-in model is made of the packages of an environment, of which this one has only two.
    """
    told = installed("python", "-m", "example_project.train", "brief", f"model.source='{tiny_hf}'")
    assert "published: 4 100 0.0001" in told
    manifest = json.loads((installed.base / "brief" / "tasks" / artifacts.MANIFEST).read_text())
    (rewards,) = manifest["config"]["grpo.sources.rewards"]
    assert rewards[1] == {"function": "example_project.rewards.brief", "weight": 0.1, "options": {"most": 4}}
