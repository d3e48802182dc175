"""A job's program on two ranks, as srun would start it: who does what, and how each attempt ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bielik_nemo import job
from bielik_nemo.artifacts import Manifest
from bielik_nemo.config import Config, Launch, Parallel, Pipeline, Run, freeze
from bielik_nemo.launch.jobs import ATTEMPTS, FAILED

PROGRAM = """
import os, pathlib, sys, time
from bielik_nemo import job, pipeline, preflight, report, stopping
from bielik_nemo.errors import DataError
from bielik_nemo.stages import GRAPH, Stage

def run(config, run_dir):
    here, rank = run_dir / "data", os.environ["RANK"]
    place = [os.environ[name] for name in ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")]
    (here / f"rank{rank}").write_text(" ".join(place))
    while not (here / "rank1").exists():
        time.sleep(0.01)
    print("said by", rank)
    WHAT
    return {"value": 1}

class Fake(Stage):
    def run(self, config, run_dir):
        return run(config, run_dir)

made = {"keys": ("run.seed",), "outputs": ("rank0", "rank1"), "trains": TRAINS}
GRAPH["data"] = Fake("data", layout=lambda config: (2, 1), **made)
report.write = lambda run_dir: run_dir / "report.html"
pipeline.sources = lambda config, stage: {}
job.main(*sys.argv[1:])
"""


@pytest.fixture
def here(tmp_path) -> Path:
    """A job's directory, as submitting leaves it, with one attempt that the script has counted."""
    config = Config(run=Run(name="r", dir=str(tmp_path / "run")), pipeline=Pipeline(["data"]), parallel=Parallel(tp=2))
    directory = tmp_path / "run" / "launch" / "jobs" / "data"
    freeze(replace(config, launch=Launch(executor="slurm")), directory / "config.yaml")
    (directory / ATTEMPTS).write_text("2026-11-22T05:00:00+00:00\n")
    return directory


def begin(here: Path, what: str = "", trains: bool = False) -> list[subprocess.Popen]:
    """Both ranks of a job, whose stage does `what`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    slurm = {"SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1"}
    program = PROGRAM.replace("WHAT", what or "pass").replace("TRAINS", str(trains))
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, str(here / "config.yaml"), "data"],
            env=os.environ | slurm | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "MASTER_PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]


def ended(ranks: list[subprocess.Popen]) -> tuple[list[int], str]:
    """Exit statuses of the ranks, and what they said."""
    said = "".join(rank.communicate(timeout=60)[0] for rank in ranks)
    return [rank.returncode for rank in ranks], said


def test_ranks_share_the_work_and_the_first_records_it(here):
    status, said = ended(begin(here))
    stage = here.parents[2] / "data"
    assert (status, Manifest.read(stage).metrics) == ([0, 0], {"value": 1})
    assert [(stage / f"rank{rank}").read_text() for rank in "01"] == ["2 0 127.0.0.1", "2 1 127.0.0.1"]
    assert sorted((stage / "log.txt").read_text().splitlines()) == ["said by 0", "said by 1"]
    assert "said by" not in said and said.count("done in") == 1
    status, said = ended(begin(here, "raise SystemExit('done a second time')"))
    assert status == [0, 0] and "done before" in said


def test_the_others_wait_until_the_first_has_recorded_it(here):
    """srun ends all tasks a minute after the first: rank 1 is through at once, rank 0 works another second."""
    ranks = begin(here, "time.sleep(2 if rank == '0' else 0)")
    while not (here.parents[2] / "data" / "rank1").exists():
        time.sleep(0.01)
    time.sleep(1)
    assert ranks[1].poll() is None
    assert ended(ranks)[0] == [0, 0]


@pytest.mark.parametrize("rank", "01")
def test_what_the_user_can_mend_is_written_down(here, rank):
    ranks = begin(here, f"if rank == '{rank}': raise DataError('text: found none')\n    time.sleep(30)")
    assert ranks[int(rank)].wait(60) == 2
    assert (here / FAILED).read_text() == "text: found none\n"
    ranks[1 - int(rank)].kill()  # as srun does
    assert "error: text: found none" in ended(ranks)[1]


def test_a_crash_is_none_of_these(here):
    ranks = begin(here, "if rank == '1': raise RuntimeError('bug')\n    time.sleep(30)")
    assert ranks[1].wait(60) == 1
    ranks[0].kill()
    assert "RuntimeError: bug" in ended(ranks)[1] + (here.parents[2] / "data" / "log.txt").read_text()
    assert not (here / FAILED).exists() and (here / ATTEMPTS).exists()


SAVES = "(here / 'checkpoints' / 'step=1').mkdir(parents=True, exist_ok=True); "


@pytest.mark.parametrize("saves", [True, False])
def test_stopped_in_time(here, saves):
    """Only what has saved goes on from there, so that only then the attempts before count no longer."""
    ranks = begin(here, f"{SAVES if saves else ''}stopping.defer(); time.sleep(1.5); stopping.check()", trains=True)
    while not (here.parents[2] / "data" / "rank1").exists():
        time.sleep(0.01)
    time.sleep(0.5)
    for rank in ranks:
        rank.send_signal(signal.SIGUSR1)
    status, said = ended(ranks)
    assert status == [75, 75] and said.count("stopped by SIGUSR1") == 1
    assert bool((here / ATTEMPTS).read_text()) == (not saves)


def test_attempts_before_the_newest_whole_checkpoint_are_forgotten(tmp_path):
    """Four attempts at 1, 2, 3 and 4 o'clock; a checkpoint of half past two, and half of one of half past three."""
    hours = [datetime(2026, 11, 22, hour, tzinfo=UTC) for hour in (1, 2, 3, 4)]
    (tmp_path / ATTEMPTS).write_text("".join(f"{hour.isoformat()}\n" for hour in hours))
    stage = tmp_path / "distill"
    for name, hour in (("step=1", hours[1]), ("step=2", hours[2])):
        (stage / "checkpoints" / name).mkdir(parents=True)
        os.utime(stage / "checkpoints" / name, (hour.timestamp() + 1800,) * 2)
    (stage / "checkpoints" / "step=2-unfinished").touch()
    job.forget(tmp_path, stage)
    assert (tmp_path / ATTEMPTS).read_text() == "2026-11-22T03:00:00+00:00\n2026-11-22T04:00:00+00:00\n"
    job.forget(tmp_path, tmp_path / "data")
    assert len((tmp_path / ATTEMPTS).read_text().splitlines()) == 2


def test_other_code_is_refused(here, monkeypatch):
    monkeypatch.setenv("BIELIK_NEMO_CODE", "0" * 64)
    ranks = begin(here)
    assert [rank.wait(60) for rank in ranks] == [2, 2]
    assert "which was checked" in (here / FAILED).read_text()


def test_a_configuration_that_cannot_be_read(here):
    (here / "config.yaml").write_text("run: 3\n")
    status, _ = ended(begin(here))
    assert status == [2, 2] and "config.yaml" in (here / FAILED).read_text()


def test_a_directory_that_the_job_does_not_see(here, monkeypatch):
    monkeypatch.setenv("BIELIK_NEMO_FROM", "/nowhere")
    assert ended(begin(here))[0] == [2, 2]
    assert (here / FAILED).read_text().startswith("BIELIK_NEMO_FROM: found '/nowhere', allowed: a directory that the")


def test_relative_paths_begin_where_it_was_submitted(here, monkeypatch):
    frozen = (here / "config.yaml").read_text()
    (here / "config.yaml").write_text(frozen.replace(str(here.parents[2]), "run"))
    monkeypatch.setenv("BIELIK_NEMO_FROM", str(here.parents[3]))
    monkeypatch.chdir("/")
    assert ended(begin(here))[0] == [0, 0]
    assert Manifest.read(here.parents[2] / "data") is not None
