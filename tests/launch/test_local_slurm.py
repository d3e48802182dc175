"""A real Slurm on this machine: launch/local_slurm brings it up and takes it away, and the tiny pipeline runs there.

The chain runs on two machines with a task on each (TP=2). Its stage distill is stopped by its time limit, then loses a
process, and ends all the same where the pipeline does that nothing disturbs; then a job is cancelled. Slurm's limits
are whole minutes and training takes seconds, so that its processes stand still until the limit is near.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bielik_nemo import artifacts
from bielik_nemo.cli import main
from bielik_nemo.launch import records, squeue, status

SCRIPT = Path(__file__).parents[2] / "launch" / "local_slurm"
here = shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
slurm = [pytest.mark.slurm, pytest.mark.skipif(here is None, reason="no slurmctld: apt-get install slurm-wlm munge")]


def local_slurm(*arguments: str, configuration: str = "") -> subprocess.CompletedProcess:
    environment = os.environ | {"SLURM_CONF": configuration}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[..., str]]:
    """`ask("squeue", "--noheader")` of a cluster of two machines, which leaves nothing behind."""
    brought_up = local_slurm("up", "--nodes", "2", "--cpus", "4")
    assert brought_up.returncode == 0, brought_up.stderr
    name, _, configuration = brought_up.stdout.removeprefix("export ").strip().partition("=")
    assert name == "SLURM_CONF"
    os.environ["SLURM_CONF"] = configuration

    def command(*words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    pids = [int(path.read_text()) for path in Path(configuration).parent.glob("*.pid")]
    assert len(pids) == 4, "munged, slurmctld and two slurmd"
    yield command
    del os.environ["SLURM_CONF"]
    taken_down = local_slurm("down", configuration=configuration)
    assert taken_down.returncode == 0, taken_down.stderr
    assert not Path(configuration).parent.exists()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


class TestCluster:
    pytestmark = slurm

    def test_a_job_runs_on_both_machines(self, ask, tmp_path):
        """Slurm's names of the machines are addresses of this one, which a program can connect to."""
        ask("sbatch", "--wait", "--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path / 'out'}", "--wrap",
            "scontrol show hostnames; srun -l printenv SLURMD_NODENAME")  # fmt: skip
        until = time.monotonic() + 5
        while len((tmp_path / "out").read_text().split()) < 6 and time.monotonic() < until:
            time.sleep(0.1)
        assert sorted((tmp_path / "out").read_text().splitlines()) == [
            "0: 127.0.0.1", "127.0.0.1", "127.0.0.2", "1: 127.0.0.2",
        ]  # fmt: skip


class TestRefused:
    @pytest.mark.parametrize("configuration", ["", "/etc/slurm/slurm.conf"])
    def test_a_cluster_that_it_did_not_bring_up_is_left_alone(self, configuration):
        done = local_slurm("down", configuration=configuration)
        assert (done.returncode, done.stderr) == (
            2,
            f"error: SLURM_CONF={configuration}: allowed is what `local_slurm up` has printed\n",
        )

    def test_programs_that_are_missing_are_named(self, monkeypatch):
        from importlib.machinery import SourceFileLoader
        from importlib.util import module_from_spec, spec_from_loader

        loader = SourceFileLoader("local_slurm", str(SCRIPT))
        module = module_from_spec(spec_from_loader("local_slurm", loader))
        loader.exec_module(module)
        monkeypatch.setattr(module, "find", lambda program: None if program == "munged" else program)
        with pytest.raises(RuntimeError, match=r"^munged: not found; Debian has them in slurm-wlm and munge$"):
            module.up(nodes=1, cpus=1, gpus=0)


@pytest.fixture(autouse=True)
def no_keyboard(monkeypatch):
    """NeMo-Run passes the standard input on to sbatch; pytest's cannot be read."""
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        yield


STAGES = ["import_hf", "data", "score", "prune", "distill", "export", "evaluate"]
TINY = ["experiment=tiny", "pipeline=compress", "parallel=tp2"]
SLURM = [
    *("cluster=local_slurm", "cluster.nodes=2", "cluster.devices_per_node=1", "cluster.time=00:30:00"),
    *("launch.time={distill: '00:04:00'}", "launch.save_before=90"),
]
STOPS_AFTER = 4 * 60 - 90
"""Seconds of a job of distill until it is told to stop; Slurm may tell it up to 60 s earlier."""


def until(met: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it has not come to this in time"
        time.sleep(0.1)


class Run:
    """A run of the chain."""

    def __init__(self, directory: Path):
        self.directory = directory

    def submit(self, *overrides: str) -> dict[str, str]:
        """The numbers of the jobs, by stage."""
        assert main(["submit", *TINY, *SLURM, f"run.dir={self.directory}", *overrides]) == 0
        return {name: job.number for name, job in records.handed(self.directory).items()}

    def standings(self) -> dict[str, status.Standing]:
        handed = records.handed(self.directory)
        return {each.stage: each for each in status.standings(self.directory, handed, status.queue(handed))}

    def states(self) -> dict[str, str]:
        return {name: each.state for name, each in self.standings().items()}

    def entry(self, stage: str) -> squeue.Entry:
        number = records.handed(self.directory)[stage].number
        return squeue.ask([number])[number]

    def ranks(self, stage: str) -> dict[int, int]:
        """Processes of a stage's job, by rank."""
        found, words = {}, ["-m", "bielik_nemo.job", f"{self.directory}/launch/jobs/{stage}/config.yaml", stage]
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                if (path / "cmdline").read_text().split("\0")[1:5] == words:
                    rank = re.search(r"\bSLURM_PROCID=(\d+)", (path / "environ").read_text())
                    pid, known = int(path.name), found.get(int(rank[1]))
                    found[int(rank[1])] = min(pid, known or pid)  # a fork comes after the process itself
        return found

    def told(self, stage: str) -> dict[int, dict]:
        """What a stage that trains has told, by step; what it told last where an attempt began at an earlier one."""
        path = self.directory / stage / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found: dict[int, dict] = {}
        for line in map(json.loads, lines):
            found.setdefault(line["step"], {}).update(line)
        return found


@pytest.mark.timeout(2400)
class TestChain:
    pytestmark = slurm

    def test_a_chain_is_stopped_and_killed_and_ends_where_an_undisturbed_one_does(self, ask, tmp_path, capfd):
        run = Run(tmp_path / "run")
        jobs = run.submit()
        assert list(jobs) == STAGES
        self._runs_in_order(run)

        # Attempt 1 of distill stands still until Slurm has told it that its time is over.
        until(lambda: max(run.told("distill"), default=0) >= 2)
        for pid in run.ranks("distill").values():
            os.kill(pid, signal.SIGSTOP)
        stopped_at = max(run.told("distill"))
        until(lambda: run.entry("distill").restarts == 1 or seconds(run.entry("distill").used) >= STOPS_AFTER)
        for pid in run.ranks("distill").values():  # where Slurm has not woken them to tell them
            os.kill(pid, signal.SIGCONT)
        until(lambda: run.entry("distill").restarts == 1)
        assert run.entry("distill").state == "PENDING"
        standing = run.standings()["distill"]
        assert (standing.state, standing.words[:22]) == ("queued", "again after 1 attempts")
        attempts = tmp_path / "run/launch/jobs/distill/attempts"
        assert attempts.read_text() == "", "one that saved is no crash"
        ask("scontrol", "update", f"JobId={jobs['distill']}", "TimeLimit=00:30:00")
        saved_at = max(run.told("distill"))
        assert stopped_at <= saved_at < 12, "it has saved before its first checkpoint is due, because it was told to"

        # Attempt 2, with more time, goes on from there, saves its step 12, then loses a process on the second node.
        until(lambda: max(run.told("distill")) >= 14)
        ranks = run.ranks("distill")
        assert set(ranks) == {0, 1}
        os.kill(ranks[1], signal.SIGKILL)
        until(lambda: run.entry("distill").restarts == 2)
        assert len(attempts.read_text().splitlines()) <= 1, "none, if rank 0 could tell that it had saved step 12"
        assert run.states()["export"] == "waiting"

        # Attempt 3 ends it; a job is cancelled while it runs, from outside, and stays so; the other goes on.
        until(lambda: run.entry("evaluate").state == "RUNNING" and run.ranks("evaluate"), 600)
        ask("scancel", jobs["evaluate"])
        until(lambda: run.entry("evaluate").state == "CANCELLED" and run.states()["export"] == "done")
        capfd.readouterr()
        assert main(["status", f"run.dir={run.directory}"]) == 0
        told = capfd.readouterr().out.splitlines()
        assert [line.split()[:2] for line in told[:6]] == [[name, "done"] for name in STAGES[:6]]
        assert told[6].split() == ["evaluate", "cancelled", jobs["evaluate"], "from", "outside"]
        assert told[7] == "6 done, 1 cancelled"
        self._in_order(ask, run, jobs)
        assert main(["logs", "distill", f"run.dir={run.directory}"]) == 0
        logs = capfd.readouterr().out
        assert logs.count("---- ") >= 3, "each attempt has a log of its own"
        assert "stopped by SIGUSR1" in logs

        self._equal(run, self._undisturbed(tmp_path / "direct"))

    def _runs_in_order(self, run: Run) -> None:
        """No job runs before those that it needs have ended, until distill runs."""
        while (states := run.states())["distill"] != "running":
            assert "failed" not in states.values(), states
            running = [name for name, state in states.items() if state == "running"]
            for name in running:
                needs = records.handed(run.directory)[name].needs
                assert {states[need] for need in needs} <= {"done"}, states
            assert run.entry("distill").state in ("PENDING", "RUNNING")
            time.sleep(1)

    def _in_order(self, ask: Callable[..., str], run: Run, jobs: dict[str, str]) -> None:
        """Each job began when those that it needs had ended; the times are Slurm's."""
        listed = ask("squeue", "--noheader", "--states=all", "--Format=JobID:|,StartTime:|,EndTime:|")
        times = {line.split("|")[0].strip(): line.split("|")[1:3] for line in listed.splitlines()}
        for later, job in records.handed(run.directory).items():
            for earlier in job.needs:
                assert times[jobs[earlier]][1] <= times[jobs[later]][0], (earlier, later)

    def _undisturbed(self, directory: Path) -> Run:
        """The same by processes that the pipeline starts itself, to the export."""
        stages = f"pipeline.stages=[{','.join(STAGES[:6])}]"
        command = [Path(sys.executable).with_name("bielik-nemo"), "pipeline", *TINY, stages, f"run.dir={directory}"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return Run(directory)

    def _equal(self, run: Run, other: Run) -> None:
        told, expected = run.told("distill"), other.told("distill")
        assert list(sorted(told)) == list(range(25))
        for step, line in expected.items():
            for key in {"loss", "held_out_loss", "lr", "grad_norm"} & set(line):
                assert told[step][key] == line[key], (step, key)
        for path in sorted((other.directory / "export/hf").glob("*.safetensors")):
            assert artifacts.file_digest(run.directory / "export/hf" / path.name) == artifacts.file_digest(path)

    def test_what_the_user_must_mend_is_not_tried_again(self, ask, tiny_hf, tmp_path, capfd):
        """The source is taken away while the jobs wait for the machines, and given back; then ours is cancelled."""
        source = shutil.copytree(tiny_hf, tmp_path / "source")
        run, ours = Run(tmp_path / "run"), [f"model.source={source}", "pipeline.stages=[import_hf,data,score]"]
        busy = ask("sbatch", "--parsable", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 600")
        until(lambda: squeue.ask([busy])[busy].state == "RUNNING")
        run.submit(*ours)
        source.rename(tmp_path / "away")
        ask("scancel", busy)
        until(lambda: set(run.states().values()) == {"failed", "not run"})
        failed, *others = run.standings().values()
        assert (failed.stage, failed.state) == ("import_hf", "failed")
        assert str(source) in failed.words
        assert run.entry("import_hf").restarts == 0
        assert [(each.stage, each.words) for each in others] == [
            ("data", "ended in vain: import_hf failed"),
            ("score", "ended in vain: import_hf failed, data not run"),
        ]

        (tmp_path / "away").rename(source)
        busy = ask("sbatch", "--parsable", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 600")
        again = run.submit(*ours)
        assert len(again) == 3 and min(map(int, again.values())) > int(busy)
        assert set(run.states().values()) == {"queued", "waiting"}
        capfd.readouterr()
        assert main(["cancel", f"run.dir={run.directory}"]) == 0
        assert f"import_hf    job {again['import_hf']}: cancelled" in capfd.readouterr().err
        until(lambda: run.standings()["import_hf"].words == "by bielik-nemo cancel")
        assert main(["cancel", f"run.dir={run.directory}"]) == 2
        ask("scancel", busy)


def seconds(used: str) -> int:
    """Of Slurm's [hours:]minutes:seconds."""
    total = 0
    for part in used.split(":"):
        total = 60 * total + int(part)
    return total
