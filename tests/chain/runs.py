"""What tests of whole runs share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bielik_nemo import pipeline
from bielik_nemo.config import Config
from bielik_nemo.errors import DataError
from bielik_nemo.stages import GRAPH

KILLER = Path(__file__).with_name("killer.py")


def run_jobs(jobs: list[dict], folder: Path) -> list[dict]:
    """What became of each job, one after another."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    with open(folder / "killer.log", "w") as log:
        command = [sys.executable, str(KILLER), str(folder / "jobs.json"), str(folder / "results.json")]
        assert subprocess.run(command, stdout=log, stderr=log).returncode == 0, folder / "killer.log"
    return json.loads((folder / "results.json").read_text())


def assert_whole(run_dir: Path) -> None:
    """Nothing half-written and nothing of use only to an unfinished stage is left."""
    names = [path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*")]
    odd = ("partial", ".tmp", "unfinished", "unchecked", "checkpoints", "index_cache", "superseded")
    assert [name for name in names if any(word in name for word in odd)] == []


def unfinished(config: Config, run_dir: Path) -> list[str]:
    """The stages that would run, in order, if everything that runs gave another result."""
    found = []
    for name in config.pipeline.stages:
        try:
            done = pipeline.finished(config, GRAPH[name], run_dir)[0] is not None
        except DataError:  # one that it needs is not
            done = False
        found += [] if done else [name]
    return found
