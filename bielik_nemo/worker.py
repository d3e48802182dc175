"""Stages on several processes of this machine: `run_ranks` starts them, this module as a script is one of them.

Not torchrun: its agent closes the run directory's lock and gives every rank a session of its own, so that the ranks of
a killed pipeline would go on writing for seconds beside the one that is started again. Here every rank holds the lock
and the kernel ends it with the process that started it.

Ranks read the frozen configuration only. Their output goes to the stage's log. Through one pipe they send lines for the
person, and, after a mark, what they measured or what the user can mend: a full disk could not take it in a file.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import IO, Any

from bielik_nemo import artifacts, errors, stopping, ui
from bielik_nemo import config as configuration
from bielik_nemo.stages import GRAPH

_MARK = "\x1e"
_LAST_WORDS = 5.0
"""Seconds that the other ranks have to report an error after one has failed."""


def run_ranks(stage: str, config: Path, log: Path, processes: int, lock: int) -> dict[str, Any]:
    """Run a stage on `processes` ranks and return what rank 0 measured.

    Args:
        stage: its name.
        config: the frozen configuration, in the stage's directory.
        log: file that takes everything the ranks print.
        processes: number of ranks.
        lock: file descriptor of the run directory's lock, which every rank inherits.

    Raises:
        UserError: the first that a rank reported, or that a rank ended without a word.
        Stopped: a signal came, which the ranks were told.
    """
    source, sink = os.pipe()
    with open(log, "ab") as output:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "bielik_nemo.worker", stage, str(config), str(os.getpid()), str(sink)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                pass_fds=[lock, sink],
            )
            for environment in _environments(processes)
        ]
    os.close(sink)
    found: dict[str, Any] = {}
    listener = threading.Thread(target=_listen, args=(open(source, encoding="utf-8"), found), daemon=True)
    listener.start()
    try:
        with stopping.passed_on(ranks):
            failed = _wait(ranks, found)
    finally:
        for rank in ranks:
            rank.kill()
        for rank in ranks:
            rank.wait()
        listener.join()
    if "error" in found:
        name, message = found["error"]
        raise getattr(errors, name)(message)
    if failed:
        stopping.check()  # one that had not come far enough to listen
        raise errors.UserError(f"{stage}: {failed}; see {log}")
    return found["result"]


def _wait(ranks: list[subprocess.Popen], found: dict[str, Any]) -> str:
    """Wait until all ranks have ended, or one has failed, which may leave the others in a collective for ever.

    Returns:
        The first failure; empty when there is none.
    """
    failed, until = "", math.inf
    while True:
        ended = [rank.poll() for rank in ranks]
        if any(ended) and not failed:
            rank, status = next((rank, status) for rank, status in enumerate(ended) if status)
            # It may only have lost its connection to one that is about to say why.
            failed, until = f"rank {rank} ended with status {status}", time.monotonic() + _LAST_WORDS
        if None not in ended or (failed and "error" in found) or time.monotonic() > until:
            return failed
        time.sleep(0.05)


def _environments(processes: int) -> list[dict[str, str]]:
    """The environment of each rank: what torchrun would set, so that Lightning asks no other launcher."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    common = threads | os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "bielik-nemo",
    }  # fmt: skip
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _listen(messages: IO[str], found: dict[str, Any]) -> None:
    """Pass on what the ranks say, and keep the first report of each kind, until the last rank is gone."""
    with messages:
        for line in messages:
            if line.startswith(_MARK):
                found.setdefault(*json.loads(line[1:]))
            else:
                ui.say(line.rstrip("\n"))


def main(stage: str, config_path: str, parent: str, sink: str) -> None:
    """Run one rank of a stage."""
    stopping.end_with(int(parent))
    messages = open(int(sink), "w", encoding="utf-8", buffering=1)
    ui.speak_to(messages)
    sys.stdout.reconfigure(line_buffering=True)
    try:
        with stopping.listening():
            metrics = GRAPH[stage].run(configuration.load(config_path), Path(config_path).parent.parent)
    except BaseException as error:  # torch's CheckpointException is not an Exception
        traceback.print_exc()
        if artifacts.disk_full(error):
            error = errors.UserError("no space left on device")
        if isinstance(error, (errors.UserError, errors.Stopped)):
            messages.write(f"{_MARK}{json.dumps(['error', [type(error).__name__, str(error)]])}\n")
        # At once: other ranks may wait for this one in a collective, and leaving Python might wait for them.
        os._exit(1)
    if ui.main_process():
        messages.write(f"{_MARK}{json.dumps(['result', metrics])}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
