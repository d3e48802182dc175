"""Hand stages to NeMo-Run: check, send the code, freeze, and a job for each stage that is not done.

Jobs on Slurm are queued at once, each after those whose results it needs; this command then ends. `local` and
`torchrun` run them one after the other while it waits.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bielik_nemo import artifacts, check, pipeline, ui
from bielik_nemo import config as configuration
from bielik_nemo.artifacts import Manifest
from bielik_nemo.config import Config
from bielik_nemo.errors import DataError, UserError
from bielik_nemo.launch import code, command, executors, jobs, records, squeue, status
from bielik_nemo.launch.jobs import ATTEMPTS, DIRECTORY, FAILED, FROM, Job
from bielik_nemo.stages import GRAPH

if TYPE_CHECKING:
    from nemo_run import Experiment


def run(config: Config, stages: Sequence[str] | None = None) -> None:
    """Submit stages (default: `pipeline.stages`) that are not done, or with `launch.dry_run` write what would be.

    Raises:
        UserError: what the user can mend; nothing is submitted then. A job of `local` or `torchrun` failed.
    """
    names = list(config.pipeline.stages if stages is None else stages)
    check.require(config, names)
    run_dir = Path(config.run.dir).absolute()
    left = [name for name in names if not done(config, name, run_dir)]
    for name in names:
        if name not in left:
            ui.say(f"{name:<10} done before")
    if not left:
        return
    # A dry run freezes the configuration as well, and jobs in the queue would take it for theirs.
    if (not config.launch.dry_run or shutil.which("squeue")) and (busy := status.busy(run_dir)):
        raise UserError(
            f"run.dir={config.run.dir}: found {len(busy)} jobs that have not ended, first {busy[0].stage} "
            f"({busy[0].number}), allowed: none; bielik-nemo cancel run.dir={shlex.quote(config.run.dir)} ends them"
        )
    planned = jobs.plan(replace(config, run=replace(config.run, dir=str(run_dir))), left)
    for job in planned:
        for name in job.needs:
            if name not in names and not done(config, name, run_dir):
                raise DataError(
                    f"run.dir={run_dir}: {job.stage} needs {name}, which has not finished under this configuration; "
                    f"submit `bielik-nemo {name}` or the whole pipeline with the same overrides first"
                )
    sent = code.ship(config.launch, run_dir / DIRECTORY / "code")
    told = f", {len(sent.changes)} files of it not committed" if sent.changes else ""
    ui.say(f"code {sent.digest[:12]} of commit {sent.commit[:12] or 'unknown'}{told}")
    for job in planned:
        configuration.freeze(job.config, job.directory / "config.yaml")
    if config.launch.dry_run:
        show(planned, run_dir / DIRECTORY / "dry_run", environment(sent))
    else:
        hand_over(planned, run_dir, environment(sent))


def done(config: Config, name: str, run_dir: Path) -> bool:
    """Whether a stage is done under this configuration."""
    if Manifest.read(run_dir / name) is None:  # without reading what it would read
        return False
    try:
        return pipeline.finished(config, GRAPH[name], run_dir)[0] is not None
    except DataError:  # one that it needs is not
        return False


def hand_over(planned: Sequence[Job], run_dir: Path, env: Mapping[str, str]) -> None:
    """Let NeMo-Run start the jobs.

    Raises:
        UserError: Slurm refuses, or a job of `local` or `torchrun` failed.
    """
    waits = planned[0].config.launch.executor != "slurm"
    for job in planned:
        for name in (FAILED, ATTEMPTS):
            (job.directory / name).unlink(missing_ok=True)
    number = len(records.identifiers(run_dir)) + 1
    with records.home(records.directory(run_dir)) as home, experiment(planned, number, home, env) as made:
        with all_or_none(made, records.submission(home, planned[0].config.run.name, number)):
            made.run(detach=not waits, tail_logs=waits)
    if not waits:
        for each, job in zip(made.jobs, planned, strict=True):
            ui.say(f"{job.stage:<12} job {each.handle.rpartition('/')[2]}: {size(job)}")
        ui.say(f"bielik-nemo status run.dir={shlex.quote(str(run_dir))}")
        return
    for job in planned:
        if not done(job.config, job.stage, run_dir):
            failed = job.directory / FAILED
            why = failed.read_text(encoding="utf-8").strip() if failed.exists() else f"it crashed; logs are in {home}"
            raise UserError(f"{job.stage}: {why}")


@contextlib.contextmanager
def all_or_none(made: Experiment, record: Path) -> Iterator[None]:
    """Where Slurm refuses a job, take back those before it, and the record of all.

    Args:
        made: with the jobs.
        record: where NeMo-Run keeps it.

    Raises:
        UserError: what Slurm says.
    """
    from invoke import UnexpectedExit

    try:
        yield
    except UnexpectedExit as error:
        if queued := [job.handle.rpartition("/")[2] for job in made.jobs if job.handle]:
            squeue.run("scancel", *queued)
        shutil.rmtree(record)
        raise UserError(f"{' '.join(error.result.stderr.split())}; none of the jobs is queued") from None


@contextlib.contextmanager
def experiment(planned: Sequence[Job], number: int, home: Path, env: Mapping[str, str]) -> Iterator[Experiment]:
    """NeMo-Run's experiment with these jobs: each after those that it needs, or without a queue after the one before.

    Args:
        planned: the jobs.
        number: of this submission of the run.
        home: NeMo-Run's, which must be set.
        env: of every job.
    """
    from nemo_run import Experiment

    config = planned[0].config
    with Experiment(
        config.run.name,
        id=f"{config.run.name}_{number}",
        log_level="WARNING",
        clean_mode=True,
        enable_goodbye_message=False,
        skip_status_at_exit=True,
        serialize_metadata_for_scripts=False,
    ) as made:
        added: list[str] = []
        for job in planned:
            after = [name for name in job.needs if name in added]
            if config.launch.executor != "slurm":
                after = added[-1:]
            executor = executors.executor(job, home, env)
            added.append(made.add(command.script(job), executor, name=job.stage, dependencies=after))
        yield made


def environment(sent: code.Code) -> dict[str, str]:
    """What every job has in its environment, beside `cluster.env`."""
    path = os.pathsep.join(filter(None, (str(sent.directory), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, code.VARIABLE: sent.digest, FROM: str(Path.cwd())}


def scripts(planned: Sequence[Job], home: Path, env: Mapping[str, str]) -> dict[str, str]:
    """What sbatch would get for each job, by stage; the folders that the scripts name are made below `home`."""
    with records.home(home), experiment(planned, 1, home, env) as made:
        made.dryrun(log=False, delete_exp_dir=False)
    written = records.submission(home, planned[0].config.run.name, 1)
    return {job.stage: (written / f"{job.stage}_sbatch.sh").read_text(encoding="utf-8") for job in planned}


def show(planned: Sequence[Job], directory: Path, env: Mapping[str, str]) -> None:
    """Write the scripts of all jobs, and the one that submits them, and print them."""
    if planned[0].config.launch.executor != "slurm":
        for job in planned:
            ui.say(shlex.join(command.words(job)))
        return
    shutil.rmtree(directory, ignore_errors=True)
    found = scripts(planned, directory, env) | {"submit": in_order(planned)}
    for name, text in found.items():
        artifacts.write_text(directory / f"{name}.sh", text)
        print(f"# ---- {directory / name}.sh\n{text}")
    ui.say(f"launch.dry_run: nothing is submitted; bash {shlex.quote(str(directory / 'submit.sh'))} would do it")


def in_order(planned: Sequence[Job]) -> str:
    """The script that submits all jobs."""
    lines = [
        "#!/bin/bash",
        "# Submits all jobs; each begins when those that it needs have ended well.",
        "set -euo pipefail",
    ]
    lines.append('cd "$(dirname "${BASH_SOURCE[0]}")"')
    names = [job.stage for job in planned]
    for job in planned:
        after = ":".join(f"${name}" for name in job.needs if name in names)
        dependency = f" --dependency=afterok:{after}" if after else ""
        lines.append(f"rm -f {job.directory / ATTEMPTS} {job.directory / FAILED}")
        lines.append(f"{job.stage}=$(sbatch --requeue --parsable{dependency} {job.stage}.sh)")
        lines.append(f'echo "{job.stage} ${job.stage}"')
    return "\n".join(lines) + "\n"


def size(job: Job) -> str:
    """What a job asks for, in words."""
    nodes = f"{job.nodes} node{'s' * (job.nodes > 1)}"
    gpus = f", {job.gpus_per_node} GPU{'s' * (job.gpus_per_node > 1)} each" if job.gpus_per_node else ""
    return f"{nodes}{gpus}, at most {job.time}"
