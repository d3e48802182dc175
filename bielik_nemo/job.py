"""The program of a job: one stage, on every rank that Slurm or torchrun has started, or alone.

Rank 0 does what the pipeline does for a stage (skip it, or open its directory, record it) and leads the others; each
computes its part. Exit status: 0 done, 75 stopped in time, 2 an error that the user can mend, anything else a crash.

Slurm's script (see launch/executors.py) counts attempts in the job's directory and queues the job again after any that
was not done: not where `failed` tells what must be mended first, nor after too many. Those that began before the newest
checkpoint do not count: the next goes on from there.
"""

from __future__ import annotations

import os
import sys
import traceback
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bielik_nemo import artifacts, pipeline, report, stopping, ui, worker
from bielik_nemo import config as configuration
from bielik_nemo.config import Config
from bielik_nemo.errors import ConfigError, Stopped, UserError
from bielik_nemo.launch import code
from bielik_nemo.launch.jobs import ATTEMPTS, FAILED, FROM
from bielik_nemo.stages import GRAPH, Stage

if TYPE_CHECKING:
    from bielik_nemo.engine.rendezvous import Rendezvous

RANKED = {"slurm": ("SLURM_NTASKS", "SLURM_PROCID"), "torchrun": ("WORLD_SIZE", "RANK")}
"""Where each executor that starts the ranks itself says how many there are, and which this is."""

ALONE = ("SLURM_NTASKS", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
ALONE += ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE")
"""What would have libraries look for other ranks, or Lightning queue the job again by itself."""


def main(path: str, name: str) -> None:
    """Run stage `name` of the frozen configuration at `path`, which is in the job's directory; ends the process."""
    ui.spare_warnings()
    here, stage, ranks, status = Path(path).parent, None, None, 1
    try:
        config = settings(path)
        stage = Path(config.run.dir, name)
        forget(here, stage)
        ranks = rendezvous(config)
        work(config, GRAPH[name], ranks)
        status = 0
    except Stopped as stopped:
        ui.say(str(stopped))
        status = 75
    except UserError as error:
        artifacts.write_text(here / FAILED, f"{error}\n")
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except BaseException:  # torch's CheckpointException is not an Exception
        traceback.print_exc()
    if stage and status not in (0, 2):
        forget(here, stage)
    if ranks and status in (0, 75):
        ranks.part()
    sys.stdout.flush()
    sys.stderr.flush()
    # At once: other ranks may wait for this one in a collective, and leaving Python might wait for them.
    os._exit(status)


def settings(path: str) -> Config:
    """The job's configuration, seen from where it was submitted.

    Raises:
        ConfigError: it cannot be read, or that directory is not seen here.
    """
    begins = os.environ.get(FROM, ".")
    try:
        os.chdir(begins)
    except OSError as error:
        raise ConfigError(
            f"{FROM}: found {begins!r}, allowed: a directory that the job sees ({error.strerror}); see cluster.mounts"
        ) from None
    return configuration.load(path)


def forget(here: Path, stage: Path) -> None:
    """Leave out the attempts that began before the newest checkpoint that is whole.

    Args:
        here: the job's directory.
        stage: the stage's.
    """
    attempts = here / ATTEMPTS
    saved = [path for path in stage.glob("checkpoints/*") if path.is_dir()]
    saved = [path.stat().st_mtime for path in saved if not path.with_name(f"{path.name}-unfinished").exists()]
    if saved and attempts.exists():
        begun = attempts.read_text(encoding="utf-8").splitlines(keepends=True)
        left = [line for line in begun if datetime.fromisoformat(line.strip()).timestamp() > max(saved)]
        artifacts.write_text(attempts, "".join(left))


def rendezvous(config: Config) -> Rendezvous | None:
    """Where this rank meets the others; None: it is alone."""
    if config.launch.executor not in RANKED:
        return None
    count, rank = RANKED[config.launch.executor]
    if int(os.environ[count]) == 1:
        for name in ALONE:
            os.environ.pop(name, None)
        return None
    os.environ["RANK"] = os.environ[rank]  # by which `ui` knows who speaks
    from bielik_nemo.engine.rendezvous import Rendezvous, of_slurm, of_torchrun

    return Rendezvous(of_slurm() if config.launch.executor == "slurm" else of_torchrun())


def work(config: Config, stage: Stage, ranks: Rendezvous | None) -> None:
    """Lead the others or follow, as this rank should; what these raise."""
    if ranks and ranks.place.rank:
        follow(config, stage, ranks)
    else:
        lead(config, stage, ranks)


def lead(config: Config, stage: Stage, ranks: Rendezvous | None) -> None:
    """Run the stage as the pipeline does, with the other ranks, or with ranks of this machine where there are none.

    Raises:
        UserError: what the user can mend, such as code that is not what was checked.
        Stopped: a signal came.
    """
    code.check()
    run_dir = Path(config.run.dir)

    def with_others(name: str, frozen: Path, log: Path, processes: int) -> dict[str, Any]:
        ranks.begin()
        with ui.library_output_to(log):
            return stage.run(configuration.load(frozen), run_dir)

    def alone(name: str, frozen: Path, log: Path, processes: int) -> dict[str, Any]:
        return worker.run_ranks(name, frozen, log, processes, lock)

    with stopping.listening(config.trainer.max_hours), artifacts.locked(run_dir, stage.name) as lock:
        pipeline.run_stage(config, stage, run_dir, with_others if ranks else alone)
        ui.say(f"report: {report.write(run_dir)}")


def follow(config: Config, stage: Stage, ranks: Rendezvous) -> None:
    """Do this rank's part, if rank 0 finds that there is something to do.

    Raises:
        UserError: what the user can mend.
        Stopped: a signal came.
    """
    code.check()
    with stopping.listening():
        if not ranks.begun():
            return
        run_dir, node = Path(config.run.dir), ranks.place.node
        with ui.library_output_to(run_dir / stage.name / (f"log.{node}.txt" if node else pipeline.LOG)):
            stage.run(config, run_dir)


if __name__ == "__main__":
    main(*sys.argv[1:])
