"""Where NeMo-Run keeps what it knows of a run's jobs, which is in the run's own directory, and what that is."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bielik_nemo.launch.jobs import DIRECTORY

EXPERIMENTS = "experiments"
"""Where NeMo-Run keeps its experiments, in its home."""


def directory(run_dir: Path) -> Path:
    """NeMo-Run's home for the jobs of a run. Not called nemo_run: it replaces that in the paths of its scripts."""
    return run_dir.absolute() / DIRECTORY / "records"


def identifiers(run_dir: Path) -> list[str]:
    """NeMo-Run's names of the submissions of a run, `<title>_<number>`, oldest first."""
    found = [path.name for path in directory(run_dir).glob(f"{EXPERIMENTS}/*/*_*")]
    return sorted(found, key=lambda name: int(name.rpartition("_")[2]))


def submission(home: Path, name: str, number: int) -> Path:
    """Where NeMo-Run keeps the `number`th submission of the run `name`."""
    return home / EXPERIMENTS / name / f"{name}_{number}"


@contextlib.contextmanager
def home(path: Path) -> Iterator[Path]:
    """NeMo-Run's home is this directory for the time of the block.

    NeMo-Run 0.11.1 asks for its home once, at import, for the lists of its schedulers; these are set here as well. It
    hands its input to what it runs, such as sbatch, which has no use for it: a script's loop would lose its lines.
    """
    from nemo_run import config
    from nemo_run.run.torchx_backend.schedulers import local, slurm

    before, lists = config.get_nemorun_home(), (slurm.SLURM_JOB_DIRS, local.LOCAL_JOB_DIRS)
    path.mkdir(parents=True, exist_ok=True)
    config.set_nemorun_home(str(path))
    slurm.SLURM_JOB_DIRS, local.LOCAL_JOB_DIRS = str(path / ".slurm_jobs"), str(path / ".local_jobs.json")
    stdin = sys.stdin
    try:
        with open(os.devnull, encoding="utf-8") as sys.stdin:
            yield path
    finally:
        sys.stdin = stdin
        config.set_nemorun_home(before)
        slurm.SLURM_JOB_DIRS, local.LOCAL_JOB_DIRS = lists


@dataclass(frozen=True)
class Handed:
    """A stage that was handed to NeMo-Run.

    Attributes:
        stage: its name.
        number: Slurm's, of its job; for the other executors NeMo-Run's own. Empty: it was not submitted.
        slurm: whether Slurm has it.
        state: of what is not Slurm's, in NeMo-Run's words.
        folder: NeMo-Run's, with scripts and logs.
        needs: stages that it waits for.
        since: when it was handed over, in seconds since the epoch.
    """

    stage: str
    number: str
    slurm: bool
    state: str
    folder: Path
    needs: tuple[str, ...]
    since: float


def handed(run_dir: Path) -> dict[str, Handed]:
    """What was handed over last of each stage, by its name."""
    if not (names := identifiers(run_dir)):
        return {}
    from nemo_run import Experiment, SlurmExecutor

    found: dict[str, Handed] = {}
    with home(directory(run_dir)) as records:
        for name in names:
            title, _, number = name.rpartition("_")
            written = submission(records, title, int(number)) / "_CONFIG"
            made = Experiment.from_id(name)
            ours = all(isinstance(job.executor, SlurmExecutor) for job in made.jobs)
            states = {} if ours else made.status(return_dict=True)
            for job in made.jobs:
                found[job.id] = Handed(
                    stage=job.id,
                    number=job.handle.rpartition("/")[2],
                    slurm=ours,
                    state="" if ours else states[job.id]["status"].name,
                    folder=Path(job.executor.job_dir),
                    needs=tuple(job.dependencies),
                    since=written.stat().st_mtime,
                )
    return found
