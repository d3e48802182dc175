"""Take jobs of a run from Slurm's queue, and end those that run.

Slurm is told directly: NeMo-Run 0.11.1 asks the accounting first, which a cluster need not have, and keeps to itself
what Slurm answers. What waits for a job that is cancelled ends with it.
"""

from __future__ import annotations

from pathlib import Path

from bielik_nemo import artifacts, ui
from bielik_nemo.errors import DataError
from bielik_nemo.launch import squeue, status
from bielik_nemo.launch.jobs import CANCELLED, DIRECTORY


def cancel(run_dir: Path, stage: str = "") -> None:
    """Cancel the jobs of a run, or that of a stage, that have not ended.

    Raises:
        DataError: there is none.
        UserError: Slurm refuses, or does not answer.
    """
    found = [job for job in status.busy(run_dir) if stage in ("", job.stage)]
    if not found:
        raise DataError(f"run.dir={run_dir}: found no job{f' of {stage}' * bool(stage)} that runs or waits")
    for job in found:  # first, so that no status takes it for somebody else's doing
        artifacts.write_text(run_dir / DIRECTORY / "jobs" / job.stage / CANCELLED, f"{job.number}\n")
    squeue.run("scancel", *(job.number for job in reversed(found)))
    for job in found:
        ui.say(f"{job.stage:<12} job {job.number}: cancelled")
