"""What a job of a run has printed: every attempt of it, and the end of what stands elsewhere when it went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bielik_nemo.errors import DataError, UserError
from bielik_nemo.launch import records, status
from bielik_nemo.launch.records import Handed

SHOWN = 40
"""Lines of a long file."""


def lines(run_dir: Path, stage: str = "") -> Iterator[str]:
    """The output of a stage's job (default: the first that failed, was cancelled or runs, or the last of all).

    Raises:
        DataError: no job has printed anything.
    """
    handed = records.handed(run_dir)
    if stage and stage not in handed:
        raise DataError(f"run.dir={run_dir}: found no job of {stage}, allowed: {', '.join(handed) or 'none is there'}")
    try:
        entries = status.queue(handed)
    except UserError:
        entries = {}
    states = {each.stage: each.state for each in status.standings(run_dir, handed, entries)}
    printed = {name: attempts(job) for name, job in handed.items()}
    speaking = [name for name in states if printed.get(name) or states[name] == "failed"]
    wanted = [name for state in ("failed", "cancelled", "running") for name in speaking if states[name] == state]
    name = stage or [*wanted, *reversed(speaking), ""][0]
    if not name or not (printed[name] or others(handed[name], run_dir)):
        raise DataError(f"run.dir={run_dir}: found no output{f' of {stage}' * bool(stage)} yet")
    for path in printed[name]:
        yield f"---- {path}"
        yield from _tail(path)
    for path in others(handed[name], run_dir):
        # Slurm's own words on a job that could not start are only here.
        if states[name] == "failed" or not printed[name]:
            yield f"---- the end of {path}"
            yield from _tail(path, SHOWN)
        else:
            yield f"---- {path}"


def attempts(job: Handed) -> list[Path]:
    """Output of the program of a job, the newest attempt last."""
    if job.slurm:
        found = job.folder.glob(f"log-*_{job.number}_*.out")
        return sorted(
            (path for path in found if path.stat().st_size), key=lambda path: int(path.stem.rpartition("_")[2])
        )
    return sorted(path for path in job.folder.rglob("combined.log") if path.stat().st_size)


def others(job: Handed, run_dir: Path) -> list[Path]:
    """Where else something stands on a job: the output of Slurm's script, and of the libraries."""
    scripts = sorted(job.folder.glob(f"sbatch_*_{job.number}.out")) if job.slurm else []
    return [*scripts, *sorted((run_dir / job.stage).glob("log*.txt"))]


def _tail(path: Path, count: int = 0) -> list[str]:
    """The last lines of a file, or all."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
