"""Handing a chain over: what is submitted and in which order, with a made-up sbatch, and what a dry run shows."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from nemo_run import Script

from bielik_nemo import check, submit
from bielik_nemo.config import Config, compose, load
from bielik_nemo.errors import ConfigError, DataError, UserError
from bielik_nemo.launch import command, records, status
from bielik_nemo.launch.jobs import ATTEMPTS, FAILED

SBATCH = """#!/bin/bash
echo "$@" >>{log}
wc -l <{log}
"""
STAGES = ["import_hf", "data", "score", "prune"]


@pytest.fixture
def config(tmp_path, monkeypatch) -> Config:
    """The tiny chain up to the cut, for Slurm; files are not looked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check, "require", lambda config, stages: None)
    overrides = ["launch=slurm", "cluster=slurm_bare", "cluster.account=me", "cluster.partition=gpu"]
    return compose("tiny", [*overrides, f"pipeline.stages=[{','.join(STAGES)}]", "parallel.tp=2", "run.dir=run"])


@pytest.fixture
def sbatch(tmp_path, monkeypatch) -> Path:
    """What was handed to sbatch, a line each; job numbers are 1, 2, ..."""
    path = tmp_path / "bin" / "sbatch"
    path.parent.mkdir()
    log = tmp_path / "submitted"
    path.write_text(SBATCH.format(log=log))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    return log


def submitted(log: Path) -> list[tuple[str, str]]:
    """Stage and dependency of each job, in order."""
    found = []
    for line in log.read_text().splitlines():
        dependency = re.search(r"--dependency=(\S+)", line)
        found.append((Path(line.split()[-1]).name.removesuffix("_sbatch.sh"), dependency[1] if dependency else ""))
    return found


def test_a_job_for_each_stage_after_those_that_it_needs(config, sbatch, tmp_path, capfd):
    submit.run(config)
    assert submitted(sbatch) == [
        ("import_hf", ""),
        ("data", "afterok:1"),
        ("score", "afterok:1:2"),
        ("prune", "afterok:1:3"),
    ]
    for stage in STAGES:
        frozen = load(tmp_path / "run" / "launch" / "jobs" / stage / "config.yaml")
        assert frozen.run.dir == str(tmp_path / "run") and frozen.parallel.tp == 2
    assert records.identifiers(tmp_path / "run") == ["tiny_1"]
    assert [(job.stage, job.number, job.needs) for job in records.handed(tmp_path / "run").values()] == [
        ("import_hf", "1", ()),
        ("data", "2", ("import_hf",)),
        ("score", "3", ("import_hf", "data")),
        ("prune", "4", ("import_hf", "score")),
    ]
    said = capfd.readouterr().err
    assert "prune        job 4: 1 node, 1 GPU each, at most 24:00:00" in said
    assert f"bielik-nemo status run.dir={tmp_path / 'run'}" in said


def test_what_is_done_is_left_out_and_the_next_submission_has_another_name(config, sbatch, tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "done", lambda config, name, run_dir: name in ("import_hf", "data"))
    monkeypatch.setattr(status, "busy", lambda run_dir: [])
    submit.run(config)
    assert submitted(sbatch) == [("score", ""), ("prune", "afterok:1")]
    here = tmp_path / "run" / "launch" / "jobs" / "score"
    for name in (FAILED, ATTEMPTS):
        (here / name).write_text("of before")
    submit.run(config)
    assert records.identifiers(tmp_path / "run") == ["tiny_1", "tiny_2"]
    assert not (here / FAILED).exists() and not (here / ATTEMPTS).exists()


def test_nothing_is_submitted_when_all_is_done(config, sbatch, monkeypatch):
    monkeypatch.setattr(submit, "done", lambda config, name, run_dir: True)
    submit.run(config)
    assert not sbatch.exists()


def test_what_a_stage_needs_must_be_done_or_come_with_it(config, sbatch):
    with pytest.raises(DataError, match=r"run\.dir=.*: prune needs import_hf, which has not finished under this"):
        submit.run(config, ["prune"])
    assert not sbatch.exists()


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_run_with_jobs_takes_no_others(config, sbatch, monkeypatch, dry_run):
    """A dry run would give them another configuration."""
    monkeypatch.setattr(submit.shutil, "which", lambda program: f"/usr/bin/{program}")
    handed = records.Handed("data", "17", True, "", Path(), (), 0.0)
    monkeypatch.setattr(status, "busy", lambda run_dir: [handed])
    config.launch.dry_run = dry_run
    with pytest.raises(UserError, match=r"run\.dir=run: found 1 jobs that have not ended, first data \(17\), allowed:"):
        submit.run(config)
    assert not sbatch.exists()


def test_uncommitted_changes_refused_before_anything_is_queued(config, sbatch, tmp_path):
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").touch()
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    subprocess.run(["git", "add", "--intent-to-add", "mine"], cwd=tmp_path, check=True)
    config.launch.packages, config.launch.changes = [str(package)], "refuse"
    with pytest.raises(ConfigError, match=r"^launch\.changes: found"):
        submit.run(config)
    assert not sbatch.exists() and not (tmp_path / "run" / "launch" / "jobs").exists()


def test_a_dry_run_writes_what_can_be_pasted(config, sbatch, tmp_path, capfd, monkeypatch):
    """The scripts are clean to bash, hold no secret of the shell, and submit.sh submits the same as `submit` does."""
    monkeypatch.setenv("WANDB_API_KEY", "hidden-away")
    config.launch.dry_run = True
    submit.run(config)
    here = tmp_path / "run" / "launch" / "dry_run"
    assert not sbatch.exists() and not (tmp_path / "run" / "launch" / "records").exists()
    printed, said = capfd.readouterr()
    for name in [*STAGES, "submit"]:
        text = (here / f"{name}.sh").read_text()
        subprocess.run(["bash", "-n", str(here / f"{name}.sh")], check=True)
        assert text in printed and "hidden-away" not in text
    assert "nothing is submitted" in said
    (tmp_path / "run" / "launch" / "jobs" / "data" / ATTEMPTS).write_text("of before\n")
    subprocess.run(["bash", str(here / "submit.sh")], check=True, cwd="/", capture_output=True)
    lines = [(stage.removesuffix(".sh"), dependency) for stage, dependency in submitted(sbatch)]
    assert lines == [("import_hf", ""), ("data", "afterok:1"), ("score", "afterok:1:2"), ("prune", "afterok:1:3")]
    assert not (tmp_path / "run" / "launch" / "jobs" / "data" / ATTEMPTS).exists()


@pytest.mark.parametrize(("wrote", "told"), [("", "data: it crashed; logs are in "), ("no text\n", "data: no text")])
def test_a_process_of_this_machine_that_fails_ends_the_chain(config, tmp_path, monkeypatch, wrote, told):
    """Jobs are made-up scripts: of `data` one that fails, after which `score` must not come."""
    ran = tmp_path / "ran"

    def script(job: command.Job) -> Script:
        fails = f"printf '{wrote}' > {job.directory / FAILED}; exit 2" if wrote else "exit 1"
        return Script(inline=f"echo {job.stage} >> {ran}; {fails if job.stage == 'data' else 'true'}")

    monkeypatch.setattr(command, "script", script)
    monkeypatch.setattr(submit, "done", lambda config, name, run_dir: ran.exists() and name == "import_hf")
    config.launch.executor = "local"
    with pytest.raises(UserError, match=told):
        submit.run(config, ["import_hf", "data"])
    assert ran.read_text().split() == ["import_hf", "data"]


def test_one_that_slurm_refuses_takes_the_others_back(config, sbatch, tmp_path):
    """The third of four is refused: the two before it are cancelled, the fourth never comes, no record is left."""
    (sbatch.parent / "bin" / "sbatch").write_text(
        f"""#!/bin/bash
case "$*" in *score_sbatch*) echo "sbatch: error: invalid partition specified: gpu" >&2; exit 1;; esac
{SBATCH.format(log=sbatch)}"""
    )
    scancel = sbatch.parent / "bin" / "scancel"
    scancel.write_text(f'#!/bin/bash\necho "$@" >{tmp_path / "cancelled"}\n')
    scancel.chmod(0o755)
    with pytest.raises(
        UserError, match=r"^sbatch: error: invalid partition specified: gpu; none of the jobs is queued$"
    ):
        submit.run(config)
    assert [stage for stage, _ in submitted(sbatch)] == ["import_hf", "data"]
    assert (tmp_path / "cancelled").read_text() == "1 2\n"
    assert records.identifiers(tmp_path / "run") == []
