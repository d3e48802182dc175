"""What a signal does in every place that a run can be at; the processes are real, the work is made up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from bielik_nemo import stopping
from bielik_nemo.errors import Stopped


def come(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number, name", [(signal.SIGTERM, "SIGTERM"), (signal.SIGUSR1, "SIGUSR1")])
def test_a_signal_ends_what_only_works(number: int, name: str):
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"stopped by {name}: the same command goes on"), stopping.listening():
        come(number)
        time.sleep(1)
    assert signal.getsignal(number) is before
    assert stopping.asked() == 0


def test_training_is_left_to_end_by_itself():
    """Though somebody else took the signal in between, as Lightning does; the first of several counts."""
    with pytest.raises(Stopped, match="SIGUSR1"), stopping.listening():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stopping.defer()
        come(signal.SIGUSR1)
        come(signal.SIGTERM)
        assert stopping.asked() == signal.SIGUSR1
        stopping.check()
    with stopping.listening():
        assert stopping.asked() == 0
        stopping.check()


def test_what_came_to_another_rank_counts():
    with stopping.listening():
        stopping.note(0)
        stopping.check()
        stopping.note(signal.SIGTERM)
        assert (
            str(stopping.stopped(" after step 3"))
            == "stopped by SIGTERM after step 3: the same command goes on from here"
        )


def test_after_so_many_hours():
    """0.36 s; in a process of its own, since pytest's own time limit uses the same clock."""
    code = """
import time
from bielik_nemo import stopping
try:
    with stopping.listening(0.0001):
        time.sleep(30)
except stopping.Stopped as stopped:
    print(stopped)
with stopping.listening():
    time.sleep(0.5)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "stopped by trainer.max_hours: the same command goes on from here\n")


def test_a_signal_is_passed_on_to_ranks_that_end_when_they_like():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    with stopping.listening(), stopping.passed_on([child]):
        come(signal.SIGUSR1)
        assert child.wait() == -signal.SIGUSR1
        with pytest.raises(Stopped):
            stopping.check()


@pytest.mark.parametrize("training", [True, False])
def test_a_fork_that_loads_for_training_lives_on(training: bool):
    """A worker of a data loader gets the signal too when it goes to all processes of a job."""
    with stopping.listening():
        if training:
            stopping.defer()
        child = os.fork()
        if child == 0:
            come()
            os._exit(7)
        _, status = os.waitpid(child, 0)
        assert os.WEXITSTATUS(status) == (7 if training else 128 + signal.SIGTERM)
        assert stopping.asked() == 0


def test_other_threads_do_not_listen():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with stopping.listening(1.0):
            stopping.defer()
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
