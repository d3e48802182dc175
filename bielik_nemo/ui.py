"""What a person sees: our own few lines on the terminal, everything that libraries print in the stage's log file."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

_terminal: TextIO = sys.__stderr__


def main_process() -> bool:
    """Whether this process speaks for all ranks."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print one line to the person, whatever becomes of stdout."""
    if main_process():
        print(text, file=_terminal, flush=True)


def show(renderable: Any) -> None:
    """Print a table."""
    from rich.console import Console

    if main_process():
        Console(file=_terminal).print(renderable)


def spare_warnings() -> None:
    """Leave out what says nothing to the person: torch warns of a package that it imports itself."""
    warnings.filterwarnings("ignore", "The pynvml package is deprecated", FutureWarning)


def speak_to(stream: TextIO) -> None:
    """Let `say` and what is like it write to a stream instead, such as a pipe that another process reads."""
    global _terminal
    _terminal = stream


class _Switch:
    """A stream whose destination can be changed under the feet of loggers that keep hold of it."""

    def __init__(self, original: TextIO):
        self.original = original
        self.target: TextIO = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)

    def write(self, text: str) -> int:
        return self.target.write(text)

    def flush(self) -> None:
        self.target.flush()


@contextlib.contextmanager
def library_output_to(path: Path) -> Iterator[None]:
    """Send stdout and stderr of this process to a log file for the time of the block; `say` is not affected."""
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), _Switch):
            setattr(sys, name, _Switch(getattr(sys, name)))
    switches = [sys.stdout, sys.stderr]
    before = [switch.target for switch in switches]
    with open(path, "a", encoding="utf-8", buffering=1) as log:
        for switch in switches:
            switch.target = log
        try:
            yield
        finally:
            for switch, target in zip(switches, before, strict=True):
                switch.target = target


@contextlib.contextmanager
def progress(text: str, total: int | None = None, done: int = 0) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal, a line every ten seconds elsewhere, both with the time left where a total is known.

    Yields `advance(info="")`, which counts one more and shows `info` beside it.
    """
    if not main_process():
        yield lambda info="": None
        return
    if _terminal.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        console = Console(file=_terminal)
        with Progress(*columns, TextColumn("{task.fields[info]}"), console=console, transient=True) as bar:
            task = bar.add_task(text, total=total, completed=done, info="")
            yield lambda info="": bar.update(task, advance=1, info=info)
        return
    first, start = done, time.monotonic()
    last = start

    def advance(info: str = "") -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if now - last > 10:
            last = now
            left = f"/{total}  {(now - start) / (done - first) * (total - done):.0f} s left" if total else ""
            say(f"  {text}: {done}{left}  {info}".rstrip())

    yield advance
