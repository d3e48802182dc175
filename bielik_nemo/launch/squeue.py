"""What Slurm knows of jobs: its queue, which remembers ended ones for some minutes, then its accounting, if any."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from bielik_nemo.errors import UserError

WAITING = ("PENDING", "REQUEUED", "SUSPENDED", "STOPPED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
WORKING = ("CONFIGURING", "RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING")
"""States of a job that has not ended; any other is an end."""

_QUEUE = ("JobID", "State", "Reason", "StartTime", "TimeUsed", "RestartCnt", "NodeList")
_ACCOUNTS = ("JobIDRaw", "State", "Elapsed", "NodeList")
_UNKNOWN = "Invalid job id specified"


@dataclass(frozen=True)
class Entry:
    """A job, as Slurm describes it.

    Attributes:
        state: one word, such as RUNNING.
        by: who cancelled it, as Slurm's accounting knows him; otherwise empty.
        reason: why it waits, or has ended, such as Dependency.
        start: time at which it began or is expected to; empty where Slurm says none.
        used: time that it has run since.
        restarts: how often it was queued again.
        nodes: where it runs or ran.
    """

    state: str
    by: str = ""
    reason: str = ""
    start: str = ""
    used: str = ""
    restarts: int = 0
    nodes: str = ""

    @property
    def ended(self) -> bool:
        """Whether it will not run any more."""
        return self.state not in WAITING + WORKING


def ask(numbers: Sequence[str]) -> dict[str, Entry]:
    """What Slurm knows of these jobs, by number; those that it does not remember are left out.

    Raises:
        UserError: Slurm is not on this machine, or does not answer.
    """
    if not numbers:
        return {}
    columns = ",".join(f"{name}:|" for name in _QUEUE)
    told = run("squeue", "--noheader", "--states=all", f"--jobs={','.join(numbers)}", f"--Format={columns}")
    found = dict(map(_of_queue, told.splitlines()))
    if left := [number for number in numbers if number not in found]:
        found |= _accounts(left)
    return found


def _of_queue(line: str) -> tuple[str, Entry]:
    number, state, reason, start, used, restarts, nodes = (word.strip() for word in line.split("|")[: len(_QUEUE)])
    plain = {"reason": "" if reason == "None" else reason, "start": "" if start == "N/A" else start}
    return number, Entry(state, used=used, restarts=int(restarts or 0), nodes=nodes, **plain)


def _accounts(numbers: Sequence[str]) -> dict[str, Entry]:
    """What the accounting has on these jobs; nothing on a cluster without one."""
    asked = (f"--jobs={','.join(numbers)}", f"--format={','.join(_ACCOUNTS)}")
    try:
        told = run("sacct", "--noheader", "--parsable2", "--allocations", *asked)
    except UserError:
        return {}
    found = {}
    for line in told.splitlines():
        number, state, used, nodes = line.split("|")
        word, _, by = state.partition(" by ")  # CANCELLED by 1000
        found[number] = Entry(word, by=by, used=used, nodes=nodes)
    return found


def run(*command: str) -> str:
    """What one of Slurm's programs prints; nothing where it does not know the jobs that it is asked about.

    Raises:
        UserError: it fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(f"{command[0]}: not found; Slurm is not on this machine") from None
    if done.returncode and _UNKNOWN not in done.stderr:
        raise UserError(f"{command[0]}: {' '.join(done.stderr.split()) or f'exit status {done.returncode}'}")
    return done.stdout
