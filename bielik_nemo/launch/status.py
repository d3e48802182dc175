"""How far the stages of a run are that were handed over: done, running, queued, waiting, failed, cancelled, not run.

NeMo-Run's records say which job is whose, Slurm where a job stands, manifests what is done whatever Slurm remembers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bielik_nemo.artifacts import MANIFEST, Manifest
from bielik_nemo.errors import DataError, UserError
from bielik_nemo.launch import records, squeue
from bielik_nemo.launch.jobs import CANCELLED, DIRECTORY, FAILED
from bielik_nemo.launch.records import Handed
from bielik_nemo.launch.squeue import Entry
from bielik_nemo.stages import GRAPH

HOPELESS = ("failed", "cancelled", "not run", "not submitted")
"""States of a stage that end what waits for it."""


@dataclass(frozen=True)
class Standing:
    """How far a stage is: a word, the number of its job, and what else there is to say."""

    stage: str
    state: str
    job: str = ""
    words: str = ""


def lines(run_dir: Path) -> Iterator[str]:
    """What a person reads: a line for each stage, then how many of each kind there are.

    Raises:
        DataError: nothing of a run is there.
    """
    handed, entries = records.handed(run_dir), {}
    try:
        entries = queue(handed)
    except UserError as error:
        yield f"what Slurm has queued is not known here: {error}"
    found = standings(run_dir, handed, entries)
    if not found:
        raise DataError(f"run.dir={run_dir}: found no stage that is done or was submitted")
    for each in found:
        yield f"{each.stage:<12}  {each.state:<13}  {each.job:>8}  {each.words}".rstrip()
    counts = Counter(each.state for each in found)
    yield ", ".join(f"{count} {state}" for state, count in counts.items())


def queue(handed: Mapping[str, Handed]) -> dict[str, Entry]:
    """What Slurm knows of the jobs, by number.

    Raises:
        UserError: Slurm does not answer.
    """
    return squeue.ask([job.number for job in handed.values() if job.slurm and job.number])


def busy(run_dir: Path) -> list[Handed]:
    """The jobs of a run that Slurm has not ended, in order.

    Raises:
        UserError: Slurm does not answer.
    """
    handed = records.handed(run_dir)
    left = {number for number, entry in queue(handed).items() if not entry.ended}
    return [handed[name] for name in GRAPH if name in handed and handed[name].number in left]


def standings(run_dir: Path, handed: Mapping[str, Handed], entries: Mapping[str, Entry]) -> list[Standing]:
    """Every stage that is done or was handed over, in order."""
    found: dict[str, Standing] = {}
    for name in GRAPH:
        job, manifest = handed.get(name), Manifest.read(run_dir / name)
        entry = entries.get(job.number) if job else None
        number = job.number if job and job.slurm else ""
        if manifest is not None and counts(manifest, run_dir / name, job, entry):
            words = f"{manifest.seconds:.0f} s, begun {manifest.started}"
            found[name] = Standing(name, "done", number, words)
        elif job is not None:
            state, words = judge(job, entry, run_dir, found)
            found[name] = Standing(name, state, number, words)
    return list(found.values())


def counts(manifest: Manifest, directory: Path, job: Handed | None, entry: Entry | None) -> bool:
    """Whether a manifest means that the stage is done, and not that it is to be done anew by a job."""
    before = job is not None and (directory / MANIFEST).stat().st_mtime < job.since
    anew = before and entry is not None and entry.state != "COMPLETED"
    return manifest.intact(directory) and not anew


def judge(job: Handed, entry: Entry | None, run_dir: Path, earlier: Mapping[str, Standing]) -> tuple[str, str]:
    """How far a stage is that is not done, and what else there is to say.

    Args:
        job: of the stage.
        entry: what Slurm knows of it.
        run_dir: of the run.
        earlier: stages before it.
    """
    here = run_dir / DIRECTORY / "jobs" / job.stage
    why = "; ".join(text(here / FAILED).splitlines())
    logs = f"see bielik-nemo logs {job.stage}"
    ended = [
        f"{name} {earlier[name].state}" for name in job.needs if name in earlier and earlier[name].state in HOPELESS
    ]
    if not job.number:
        return "not submitted", ""
    if not job.slurm:
        return _process(job, why or logs)
    if entry is None:
        return ("failed", why) if why else ("unknown", f"Slurm does not know it, and it has left no result; {logs}")
    if entry.state in squeue.WORKING:
        where = f"for {entry.used} on {entry.nodes}{progress(run_dir / job.stage)}"
        return "running", f"attempt {entry.restarts + 1}, {where}"
    if entry.reason == "DependencyNeverSatisfied" or (entry.ended and ended and entry.used in ("", "0:00", "00:00:00")):
        return "not run", f"{'ended' if entry.ended else 'waits'} in vain: {', '.join(ended) or 'what it needs failed'}"
    if not entry.ended:
        return _queued(job, entry, earlier)
    if entry.state == "CANCELLED":
        if text(here / CANCELLED) == job.number:
            return "cancelled", "by bielik-nemo cancel"
        return "cancelled", f"from outside, by user {entry.by}" if entry.by else "from outside"
    if entry.state == "COMPLETED":
        return "failed", f"ended well, but without a result; {logs}"
    if entry.state == "TIMEOUT":
        return "failed", f"ended by its time limit before it had saved (launch.save_before); {logs}"
    return "failed", why or f"{entry.state}, {entry.restarts + 1} attempts; {logs}"


def _process(job: Handed, why: str) -> tuple[str, str]:
    """Of what NeMo-Run has started itself: it remembers what it saw last."""
    if job.state in ("FAILED", "CANCELLED"):
        return job.state.lower(), why
    if job.state == "SUCCEEDED":
        return "failed", "ended well, but without a result"
    return "running", "or interrupted: it belongs to the command that started it"


def _queued(job: Handed, entry: Entry, earlier: Mapping[str, Standing]) -> tuple[str, str]:
    # Slurm gives the reason a moment later.
    if missing := [name for name in job.needs if name in earlier and earlier[name].state != "done"]:
        return "waiting", f"for {', '.join(missing)}"
    again = f"again after {entry.restarts} attempts; " if entry.restarts else ""
    start = f", expected to start {entry.start}" if entry.start else ""
    return "queued", f"{again}{entry.reason or entry.state}{start}"


def text(path: Path) -> str:
    """What stands in a small file; nothing where it is not there."""
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def progress(directory: Path) -> str:
    """The last step that a stage has told."""
    try:
        last = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        return f", step {json.loads(last)['step']}"
    except (OSError, ValueError, IndexError, KeyError):
        return ""
