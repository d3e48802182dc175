"""How far jobs are: Slurm's words, manifests and the texts of failed jobs, brought together."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bielik_nemo.artifacts import Manifest, write_text
from bielik_nemo.cli import main
from bielik_nemo.errors import DataError, UserError
from bielik_nemo.launch import cancel, logs, records, squeue, status
from bielik_nemo.launch.records import Handed
from bielik_nemo.launch.squeue import Entry

DIED = Entry("CANCELLED", reason="DependencyNeverSatisfied", used="0:00")


def handed(
    stage: str, number: str = "7", needs: tuple[str, ...] = (), folder: Path = Path(), state: str = ""
) -> Handed:
    return Handed(stage, number, not state, state, folder, needs, since=time.time())


def finish(run_dir: Path, stage: str, outputs: tuple[str, ...] = ()) -> None:
    entries = {name: {"size": 0, "mtime_ns": 0, "sha256": ""} for name in outputs}
    (run_dir / stage).mkdir(parents=True)
    Manifest(stage, "", {}, {}, {}, entries, {}, started="2026-01-02T03:04:05+00:00", seconds=61.4).write(
        run_dir / stage
    )


def standing(run_dir: Path, job: Handed, entry: Entry | None) -> tuple[str, str]:
    entries = {job.number: entry} if entry else {}
    (found,) = status.standings(run_dir, {job.stage: job}, entries)
    assert found.job == (job.number if job.slurm else "")
    return found.state, found.words


class TestOneJob:
    @pytest.mark.parametrize(
        ("entry", "said"),
        [
            (Entry("RUNNING", used="1:05", restarts=1, nodes="n[1-2]"), ("running", "attempt 2, for 1:05 on n[1-2]")),
            (Entry("COMPLETING", used="1:05", nodes="n1"), ("running", "attempt 1, for 1:05 on n1")),
            (Entry("PENDING", reason="Resources", start="T"), ("queued", "Resources, expected to start T")),
            (Entry("PENDING", reason="BeginTime", restarts=2), ("queued", "again after 2 attempts; BeginTime")),
            (Entry("PENDING", reason="DependencyNeverSatisfied"), ("not run", "waits in vain: what it needs failed")),
            (DIED, ("not run", "ended in vain: what it needs failed")),
            (Entry("CANCELLED", used="0:30"), ("cancelled", "from outside")),
            (Entry("CANCELLED", by="1000", used="0:30"), ("cancelled", "from outside, by user 1000")),
            (
                Entry("FAILED", used="0:30", restarts=2),
                ("failed", "FAILED, 3 attempts; see bielik-nemo logs distill"),
            ),
            (
                Entry("TIMEOUT"),
                (
                    "failed",
                    "ended by its time limit before it had saved (launch.save_before); see bielik-nemo logs distill",
                ),
            ),
            (
                Entry("COMPLETED"),
                ("failed", "ended well, but without a result; see bielik-nemo logs distill"),
            ),
            (
                None,
                ("unknown", "Slurm does not know it, and it has left no result; see bielik-nemo logs distill"),
            ),
        ],
    )
    def test_what_slurm_says_in_words(self, tmp_path, entry, said):
        assert standing(tmp_path, handed("distill", needs=("prune",)), entry) == said

    def test_one_that_slurm_refused(self, tmp_path):
        assert standing(tmp_path, handed("distill", number=""), None) == ("not submitted", "")

    def test_one_of_this_machine_is_what_nemo_run_last_saw(self, tmp_path):
        assert standing(tmp_path, handed("distill", state="FAILED"), None)[0] == "failed"
        assert standing(tmp_path, handed("distill", state="RUNNING"), None)[0] == "running"

    def test_the_text_of_the_failure_goes_before_slurms_word(self, tmp_path):
        write_text(tmp_path / "launch/jobs/distill/failed", "optim.lr: found -1\noptim.beta1: found 2\n")
        entry = Entry("FAILED", used="0:30")
        assert standing(tmp_path, handed("distill"), entry) == ("failed", "optim.lr: found -1; optim.beta1: found 2")

    def test_our_own_cancelling_is_told_from_somebody_elses(self, tmp_path):
        """The mark names the job: that of an earlier job of the stage says nothing of this one."""
        write_text(tmp_path / "launch/jobs/distill/cancelled", "7\n")
        entry = Entry("CANCELLED", used="0:30")
        assert standing(tmp_path, handed("distill", "7"), entry) == ("cancelled", "by bielik-nemo cancel")
        assert standing(tmp_path, handed("distill", "8"), entry) == ("cancelled", "from outside")

    def test_the_last_step_of_one_that_trains(self, tmp_path):
        write_text(tmp_path / "distill/metrics.jsonl", '{"step": 11, "loss": 1}\n{"step": 12, "loss": 1}\n')
        entry = Entry("RUNNING", used="1:05", nodes="n1")
        assert standing(tmp_path, handed("distill"), entry) == ("running", "attempt 1, for 1:05 on n1, step 12")


class TestDone:
    @pytest.mark.parametrize("state", ["RUNNING", "TIMEOUT", "CANCELLED", "COMPLETED", None])
    def test_it_is_done_whatever_slurm_remembers(self, tmp_path, state):
        job = handed("distill")
        finish(tmp_path, "distill")
        os.utime(tmp_path / "distill/manifest.json", (job.since + 1, job.since + 1))
        entry = Entry(state) if state else None
        assert standing(tmp_path, job, entry) == ("done", "61 s, begun 2026-01-02T03:04:05+00:00")

    def test_one_that_is_to_be_done_anew_is_not(self, tmp_path):
        """Its manifest is of another configuration; a job that found that it still counts has ended well."""
        finish(tmp_path, "distill")
        os.utime(tmp_path / "distill/manifest.json", (1, 1))
        assert standing(tmp_path, handed("distill"), Entry("PENDING", reason="Priority"))[0] == "queued"
        assert standing(tmp_path, handed("distill"), Entry("COMPLETED"))[0] == "done"

    def test_one_that_lost_its_files_is_not(self, tmp_path):
        finish(tmp_path, "distill", outputs=("megatron/weights",))
        assert standing(tmp_path, handed("distill"), Entry("COMPLETED"))[0] == "failed"

    def test_stages_of_a_run_without_jobs_are_listed(self, tmp_path):
        finish(tmp_path, "import_hf")
        assert list(status.lines(tmp_path)) == [
            "import_hf     done                     61 s, begun 2026-01-02T03:04:05+00:00",
            "1 done",
        ]

    def test_nothing_at_all_is_an_error(self, tmp_path):
        with pytest.raises(DataError, match="found no stage that is done or was submitted"):
            list(status.lines(tmp_path))


class TestChain:
    CHAIN = {
        "prune": handed("prune", "1"),
        "distill": handed("distill", "2", ("prune",)),
        "export": handed("export", "3", ("distill",)),
    }

    def test_what_waits_for_a_cancelled_job_does_so_in_vain(self, tmp_path):
        """Slurm takes the first that waits out of its queue, and what waits for that one a moment later."""
        entries = {
            "1": Entry("CANCELLED", used="0:30"),
            "2": Entry("CANCELLED", used="0:00"),
            "3": Entry("PENDING", reason="DependencyNeverSatisfied"),
        }
        found = {each.stage: (each.state, each.words) for each in status.standings(tmp_path, self.CHAIN, entries)}
        assert found == {
            "prune": ("cancelled", "from outside"),
            "distill": ("not run", "ended in vain: prune cancelled"),
            "export": ("not run", "waits in vain: distill not run"),
        }

    def test_without_slurm_what_the_directory_tells_is_told(self, tmp_path, monkeypatch):
        monkeypatch.setattr(records, "handed", lambda run_dir: self.CHAIN)
        monkeypatch.setenv("PATH", str(tmp_path))
        finish(tmp_path, "prune")
        first, *rest = status.lines(tmp_path)
        assert first == "what Slurm has queued is not known here: squeue: not found; Slurm is not on this machine"
        assert [line.split()[:2] for line in rest[:3]] == [
            ["prune", "done"], ["distill", "unknown"], ["export", "unknown"],
        ]  # fmt: skip

    def test_what_is_done_is_not_waited_for(self, tmp_path):
        finish(tmp_path, "prune")
        os.utime(tmp_path / "prune/manifest.json", (time.time() + 60,) * 2)
        chain = self.CHAIN | {"export": handed("export", "3", ("prune", "distill"))}
        entries = {"1": Entry("COMPLETED"), "2": Entry("RUNNING"), "3": Entry("PENDING", reason="Dependency")}
        assert status.standings(tmp_path, chain, entries)[-1].words == "for distill"
        entries |= {"3": Entry("PENDING")}  # Slurm has not looked at it yet
        assert status.standings(tmp_path, chain, entries)[-1].words == "for distill"


@pytest.fixture
def program(tmp_path, monkeypatch):
    """`program(name, text, status)`: a program of Slurm's that writes down its arguments and prints a text."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def make(name: str, text: str, status: int = 0) -> Path:
        asked, path = tmp_path / f"{name}.asked", tmp_path / "bin" / name
        redirect = ">&2" if status else ""
        script = f"#!/bin/sh\necho \"$@\" > '{asked}'\nexec /bin/cat <<'END' {redirect}\n{text}\nEND\n"
        write_text(path, script.replace("exec ", "") + f"exit {status}\n" if status else script)
        path.chmod(0o755)
        return asked

    return make


class TestSlurm:
    def test_the_queue_is_asked_first_then_the_accounting(self, program):
        asked = program("squeue", "1|RUNNING|None|2026-01-02T03:04:05|1:05|1|n1|\n2|PENDING|Dependency|N/A|0:00|0||")
        program("sacct", "3|CANCELLED by 1000|00:00:30|n1")
        assert squeue.ask(["1", "2", "3"]) == {
            "1": Entry("RUNNING", start="2026-01-02T03:04:05", used="1:05", restarts=1, nodes="n1"),
            "2": Entry("PENDING", reason="Dependency", used="0:00"),
            "3": Entry("CANCELLED", by="1000", used="00:00:30", nodes="n1"),
        }
        assert "--jobs=1,2,3" in asked.read_text()

    def test_what_neither_remembers_is_left_out(self, program):
        """A cluster without accounting, and a single job that the queue has forgotten."""
        program("squeue", "slurm_load_jobs error: Invalid job id specified", status=1)
        program("sacct", "Slurm accounting storage is disabled", status=1)
        assert squeue.ask(["1"]) == {}

    def test_a_controller_that_does_not_answer_is_an_error(self, program):
        program("squeue", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)", status=1)
        with pytest.raises(UserError, match=r"^squeue: slurm_load_jobs error: Unable to contact slurm controller"):
            squeue.ask(["1"])

    def test_a_machine_without_slurm(self, program):
        with pytest.raises(UserError, match=r"^squeue: not found; Slurm is not on this machine$"):
            squeue.ask(["1"])


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """`prune` has failed in its second attempt, `distill` waits."""
    folder = tmp_path / "records" / "prune"
    jobs = {
        "prune": handed("prune", "11", folder=folder),
        "distill": handed("distill", "12", ("prune",), folder.parent),
    }
    monkeypatch.setattr(records, "handed", lambda run_dir: jobs)
    entries = {"11": Entry("RUNNING", used="1:00"), "12": Entry("PENDING", reason="Dependency")}
    monkeypatch.setattr(squeue, "ask", lambda numbers: {number: entries[number] for number in numbers})
    write_text(folder / "log-bielik-nemo-prune_11_0.out", "first attempt\n")
    write_text(folder / "log-bielik-nemo-prune_11_1.out", "second attempt\n")
    write_text(folder / "log-bielik-nemo-prune_10_0.out", "of another submission\n")
    write_text(folder / "sbatch_bielik-nemo-prune_11.out", "set -x\n" * 100 + "srun: error: it broke\n")
    write_text(tmp_path / "prune" / "log.txt", "a library speaks\n")
    return entries


class TestLogs:
    def test_all_attempts_are_shown_and_where_the_rest_is(self, tmp_path, chain):
        folder = tmp_path / "records" / "prune"
        assert list(logs.lines(tmp_path)) == [
            f"---- {folder}/log-bielik-nemo-prune_11_0.out",
            "first attempt",
            f"---- {folder}/log-bielik-nemo-prune_11_1.out",
            "second attempt",
            f"---- {folder}/sbatch_bielik-nemo-prune_11.out",
            f"---- {tmp_path}/prune/log.txt",
        ]

    def test_of_a_failure_the_end_of_the_rest_is_shown_too(self, tmp_path, chain):
        """40 lines of the script's output, and all of the library's, which are fewer."""
        chain["11"] = Entry("FAILED", used="1:00", restarts=1)
        found = list(logs.lines(tmp_path, "prune"))
        assert found[4:][0] == f"---- the end of {tmp_path}/records/prune/sbatch_bielik-nemo-prune_11.out"
        assert found[5:45] == ["set -x"] * 39 + ["srun: error: it broke"]
        assert found[45:] == [f"---- the end of {tmp_path}/prune/log.txt", "a library speaks"]

    def test_the_one_that_failed_goes_before_the_one_that_came_last(self, tmp_path, chain):
        chain |= {"11": Entry("CANCELLED", used="1:00"), "12": Entry("COMPLETED")}
        finish(tmp_path, "distill")
        os.utime(tmp_path / "distill/manifest.json", (time.time() + 60,) * 2)
        write_text(tmp_path / "records" / "log-bielik-nemo-distill_12_0.out", "done\n")
        assert next(logs.lines(tmp_path)).endswith("log-bielik-nemo-prune_11_0.out")

    def test_a_job_that_has_not_begun_and_one_that_is_none(self, tmp_path, chain):
        with pytest.raises(DataError, match="found no output of distill yet"):
            list(logs.lines(tmp_path, "distill"))
        with pytest.raises(DataError, match="found no job of dpo, allowed: prune, distill"):
            list(logs.lines(tmp_path, "dpo"))


class TestCancel:
    def test_what_waits_goes_first_and_is_known_as_our_own_doing(self, tmp_path, chain, program):
        asked = program("scancel", "")
        cancel.cancel(tmp_path)
        assert asked.read_text() == "12 11\n"
        chain |= {"11": Entry("CANCELLED", used="1:00"), "12": DIED}
        found = status.standings(tmp_path, records.handed(tmp_path), chain)
        assert [each.state for each in found] == ["cancelled", "not run"]
        assert found[0].words == "by bielik-nemo cancel"

    def test_one_stage_alone(self, tmp_path, chain, program):
        asked = program("scancel", "")
        cancel.cancel(tmp_path, "distill")
        assert asked.read_text() == "12\n"

    def test_nothing_to_cancel_is_an_error(self, tmp_path, chain):
        chain |= {"11": Entry("FAILED"), "12": DIED}
        with pytest.raises(DataError, match="found no job that runs or waits"):
            cancel.cancel(tmp_path)

    def test_what_slurm_says_is_told(self, tmp_path, chain, program):
        program("scancel", "scancel: error: Kill job error on job id 11: Access/permission denied", status=1)
        with pytest.raises(UserError, match=r"^scancel: .*permission denied"):
            cancel.cancel(tmp_path)


class TestCommandLine:
    def test_status_of_a_run(self, tmp_path, capsys):
        finish(tmp_path, "import_hf")
        assert main(["status", f"run.dir={tmp_path}"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == "1 done"

    def test_a_word_that_is_no_stage(self, tmp_path, capsys):
        assert main(["logs", "distil", f"run.dir={tmp_path}"]) == 2
        assert capsys.readouterr().err.startswith("error: logs distil: allowed: import_hf")
