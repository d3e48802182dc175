"""Ranks of a made-up stage, which Python's `sitecustomize` puts in the place of `bielik_nemo.stages.score`."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bielik_nemo import errors, stopping, ui, worker
from bielik_nemo.config import Config, freeze

HEAD = """
import errno, os, pathlib, sys, time, types
from bielik_nemo import errors, ui
module = types.ModuleType("bielik_nemo.stages.score")
sys.modules[module.__name__] = module
rank = os.environ.get("RANK")
def run(config, run_dir):
    (run_dir / f".{rank}").write_text(str(os.getpid()))
    (run_dir / f".{rank}").rename(run_dir / f"pid{rank}")
"""


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """`ranks(body)` runs a stage whose function has this body on two ranks."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.setattr(ui, "_terminal", io.StringIO())
    freeze(Config(), tmp_path / "run" / "score" / "config.yaml")

    def run(body: str) -> dict[str, Any]:
        prepare(tmp_path, body)
        lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
        try:
            return worker.run_ranks("score", tmp_path / "run" / "score" / "config.yaml", tmp_path / "log", 2, lock)
        finally:
            os.close(lock)

    return run


def prepare(tmp_path: Path, body: str) -> None:
    (tmp_path / "path").mkdir(exist_ok=True)
    code = HEAD + textwrap.indent(textwrap.dedent(body), "    ") + "\nmodule.run = run\n"
    (tmp_path / "path" / "sitecustomize.py").write_text(code)


def alive(tmp_path: Path) -> list[int]:
    """Ranks that have started and not ended."""
    pids = [int(path.read_text()) for path in (tmp_path / "run").glob("pid*")]
    assert pids
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and "Z" not in state(pid)]


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_the_first_rank_gives_the_result_and_speaks(ranks, tmp_path: Path):
    body = """
    ui.say(f"rank {rank} says")
    print(f"rank {rank} prints")
    os.write(1, f"rank {rank} writes\\n".encode())
    print(f"rank {rank} warns", file=sys.stderr)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    return {"environment": [os.environ[name] for name in names], "seed": config.run.seed, "run_dir": str(run_dir)}
    """
    metrics = ranks(body)
    assert metrics == {
        "environment": ["0", "0", "2", "2", "127.0.0.1"],
        "seed": 1234,
        "run_dir": str(tmp_path / "run"),
    }
    assert ui._terminal.getvalue() == "rank 0 says\n"
    expected = {f"rank {rank} {does}" for rank in (0, 1) for does in ("prints", "writes", "warns")}
    assert set((tmp_path / "log").read_text().splitlines()) == expected
    assert alive(tmp_path) == []


@pytest.mark.parametrize("name", ["ConfigError", "DataError", "CheckpointError", "GateError", "UserError"])
def test_what_the_user_can_mend_arrives_as_what_it_was(name: str, ranks, tmp_path: Path):
    """One rank reports; the other waits for it for ever, as in a collective, and is ended."""
    body = f"""
    if rank == "1":
        raise errors.{name}("a.txt:3: źle\\nand more")
    time.sleep(600)
    """
    with pytest.raises(getattr(errors, name)) as caught:
        ranks(body)
    assert type(caught.value).__name__ == name and str(caught.value) == "a.txt:3: źle\nand more"
    assert alive(tmp_path) == []


def test_the_reason_is_reported_though_another_rank_fails_first(ranks, tmp_path: Path):
    """A rank that raises leaves its group before it reports, and the others fail of that."""
    body = """
    if rank == "0":
        raise RuntimeError("connection closed by peer")
    time.sleep(0.5)
    raise errors.GateError("teacher: held-out loss 7.0")
    """
    with pytest.raises(errors.GateError, match="held-out loss 7"):
        ranks(body)
    assert alive(tmp_path) == []


def test_a_full_disk_is_reported_though_no_file_can_be_written(ranks, tmp_path: Path):
    body = """
    if rank == "0":
        time.sleep(600)

    class CheckpointException(BaseException):  # so is torch's
        pass
    raise CheckpointException("rank 1: [Errno 28] No space left on device")
    """
    with pytest.raises(errors.UserError, match="no space left on device"):
        ranks(body)
    assert alive(tmp_path) == []


@pytest.mark.parametrize(
    "body, status", [("raise ValueError('ours')", 1), ("os.kill(os.getpid(), 9)", -9), ("sys.exit(3)", 1)]
)
def test_a_rank_that_just_ends_is_named_with_its_log(body: str, status: int, ranks, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(worker, "_LAST_WORDS", 0.2)
    with pytest.raises(errors.UserError) as caught:
        ranks(f"if rank == '1':\n    {body}\ntime.sleep(600)")
    assert str(caught.value) == f"score: rank 1 ended with status {status}; see {tmp_path / 'log'}"
    if "ours" in body:
        assert "ValueError: ours" in (tmp_path / "log").read_text()
    assert alive(tmp_path) == []


def test_an_interrupt_ends_all_ranks(ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(seconds: float) -> None:
        if len(list((tmp_path / "run").glob("pid*"))) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(worker.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ranks("time.sleep(600)")
    assert alive(tmp_path) == []


@pytest.mark.parametrize(
    "body, said",
    [
        ("time.sleep(600)", "stopped by SIGUSR1: the same command goes on from here"),
        # Training notes it, saves and says after which step.
        (
            """
            from bielik_nemo import stopping
            stopping.defer()
            (run_dir / "ready").touch()
            while not stopping.asked():
                time.sleep(0.01)
            raise stopping.stopped(" after step 3")
            """,
            "stopped by SIGUSR1 after step 3: the same command goes on from here",
        ),
    ],
)
def test_ranks_are_told_of_a_signal_and_end_as_they_like(body: str, said: str, ranks, tmp_path: Path, monkeypatch):
    def send(seconds: float) -> None:
        if len(list((tmp_path / "run").glob("pid*"))) == 2 and not stopping.asked():
            pause(0.3)
            os.kill(os.getpid(), signal.SIGUSR1)

    pause = time.sleep
    monkeypatch.setattr(worker.time, "sleep", send)
    with stopping.listening(), pytest.raises(errors.Stopped) as caught:
        ranks(textwrap.dedent(body))
    assert str(caught.value) == said
    assert alive(tmp_path) == []


def test_a_signal_that_kills_a_rank_which_does_not_listen_yet_is_no_error(ranks, tmp_path: Path, monkeypatch):
    def send(seconds: float) -> None:
        if len(list((tmp_path / "run").glob("pid*"))) == 2 and not stopping.asked():
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(worker, "_LAST_WORDS", 0.2)
    monkeypatch.setattr(worker.time, "sleep", send)
    body = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_DFL)\ntime.sleep(600)"
    with stopping.listening(), pytest.raises(errors.Stopped, match="stopped by SIGTERM"):
        ranks(body)
    assert alive(tmp_path) == []


def test_ranks_end_with_the_process_that_started_them(ranks, tmp_path: Path):
    prepare(tmp_path, "time.sleep(600)")
    config = tmp_path / "run" / "score" / "config.yaml"
    code = f"""
import os, pathlib
from bielik_nemo import worker
lock = os.open({str(tmp_path / "lock")!r}, os.O_CREAT | os.O_RDWR)
worker.run_ranks("score", pathlib.Path({str(config)!r}), pathlib.Path({str(tmp_path / "log")!r}), 2, lock)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while len(list((tmp_path / "run").glob("pid*"))) < 2:
        assert parent.poll() is None
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while alive(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_rank_whose_parent_is_gone_already_does_nothing(ranks, tmp_path: Path):
    prepare(tmp_path, "return {}")
    arguments = ["score", str(tmp_path / "run" / "score" / "config.yaml"), "1", "1"]  # process 1 did not start it
    done = subprocess.run([sys.executable, "-m", "bielik_nemo.worker", *arguments], capture_output=True, text=True)
    assert done.returncode == 1 and "is gone" in done.stderr
    assert not list((tmp_path / "run").glob("pid*"))


def test_ranks_hold_the_lock(ranks, tmp_path: Path):
    """As long as one of them lives, nobody else gets it, even when the pipeline has let go of it."""
    import fcntl

    prepare(tmp_path, "time.sleep(600)")
    config = tmp_path / "run" / "score" / "config.yaml"
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    source, sink = os.pipe()
    rank = subprocess.Popen(
        [sys.executable, "-m", "bielik_nemo.worker", "score", str(config), str(os.getpid()), str(sink)],
        pass_fds=[lock, sink],
        env=os.environ | {"RANK": "0"},
    )
    for descriptor in (lock, source, sink):
        os.close(descriptor)
    try:
        while not list((tmp_path / "run").glob("pid*")):
            assert rank.poll() is None
            time.sleep(0.01)
        with open(tmp_path / "lock") as other:
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            rank.send_signal(signal.SIGKILL)
            rank.wait()
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        rank.kill()
        rank.wait()
