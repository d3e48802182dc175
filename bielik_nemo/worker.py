"""One rank of a stage that runs on several processes: `torchrun ... -m bielik_nemo.worker <stage> <config.yaml>`.

Ranks read the frozen configuration only. Rank 0 leaves the stage's metrics in `result.json`; a rank that fails with
something the user can mend leaves it in `error.json` for the process that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

from bielik_nemo import artifacts, errors, ui
from bielik_nemo import config as configuration
from bielik_nemo.stages import GRAPH

RESULT = "result.json"
ERROR = "error.json"
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel end this process when its parent is gone, so that a killed pipeline leaves no rank behind."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def read_error(directory: Path) -> errors.UserError:
    """The error that a rank left, as the class it was."""
    found = artifacts.read_json(directory / ERROR)
    return getattr(errors, found["type"], errors.UserError)(found["message"])


def main(stage: str, config_path: str) -> None:
    """Run one rank of a stage."""
    die_with_parent()
    ui.use_stdout()
    config = configuration.load(config_path)
    directory = Path(config_path).parent
    try:
        with ui.library_output_to(directory / "log.txt"):
            metrics = GRAPH[stage].run(config, directory.parent)
    except errors.UserError as error:
        artifacts.write_json(directory / ERROR, {"type": type(error).__name__, "message": str(error)})
        # At once: other ranks may wait for this one in a collective, and torchrun ends them when it sees this status.
        os._exit(1)
    if ui.main_process():
        artifacts.write_json(directory / RESULT, metrics)


if __name__ == "__main__":
    main(*sys.argv[1:])
