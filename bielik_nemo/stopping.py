"""Signals that ask a run to end before it is through: after a checkpoint where it trains, at once anywhere else.

SIGTERM, SIGUSR1 (what Slurm's `--signal` sends before a time limit) and the clock of `trainer.max_hours` mean the same.
A process that has started ranks passes the signal on and waits for them. What nobody catches ends as `Stopped`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from bielik_nemo.errors import Stopped

NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGUSR1: "SIGUSR1", signal.SIGALRM: "trainer.max_hours"}

_PR_SET_PDEATHSIG = 1

_asked = 0
_deferred = False
_process = 0
_ranks: Sequence[subprocess.Popen] = ()


@contextlib.contextmanager
def listening(hours: float | None = None) -> Iterator[None]:
    """Listen for the time of the block, which is to end after `hours` (None: any time).

    Python lets only the main thread handle signals; in any other this does nothing.
    """
    global _asked, _deferred
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in NAMES}
    _asked, _deferred = 0, False
    _install()
    if hours:
        signal.setitimer(signal.ITIMER_REAL, hours * 3600)
    try:
        yield
    finally:
        if hours:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked, _deferred = 0, False


@contextlib.contextmanager
def passed_on(ranks: Sequence[subprocess.Popen]) -> Iterator[None]:
    """Pass what comes during the block on to these processes, which decide when to end."""
    global _ranks
    _ranks = ranks
    try:
        yield
    finally:
        _ranks = ()


def defer() -> None:
    """From here on, until `check`, only note what comes. Takes the signals back from whoever took them since."""
    global _deferred
    _deferred = True
    if threading.current_thread() is threading.main_thread():
        _install()


def asked() -> int:
    """The first signal that came; 0: none."""
    return _asked


def note(number: int) -> None:
    """What came to another rank counts here as well."""
    global _asked
    _asked = _asked or number


def check() -> None:
    """Defer no longer.

    Raises:
        Stopped: a signal came.
    """
    global _deferred
    _deferred = False
    if _asked:
        raise stopped()


def stopped(after: str = "") -> Stopped:
    """What to raise, with the name of what came, `after` what."""
    return Stopped(f"stopped by {NAMES[_asked]}{after}: the same command goes on from here")


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent `parent` dies, or end it now if that has happened already."""
    with contextlib.suppress(AttributeError):  # only Linux has it
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that started this one is gone")


def ignore() -> None:
    """In a process that serves another one, and ends with it, nothing that comes counts."""
    for number in NAMES:
        signal.signal(number, signal.SIG_IGN)


def _install() -> None:
    global _process
    _process = os.getpid()
    for number in NAMES:
        signal.signal(number, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    global _asked
    if os.getpid() != _process:  # a fork: one that loads or saves for training lives on until that ends it
        if not _deferred:
            os._exit(128 + number)
        return
    _asked = _asked or number
    for rank in _ranks:
        rank.send_signal(number)
    if not (_deferred or _ranks):
        raise stopped()
