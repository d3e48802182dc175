"""A run that is killed at any moment and started again finishes, repeats nothing, and ends bit for bit the same.

Moments are file operations, at which `killer.py` ends the process from within: just before one of them is just after
another, so that together they are all states that a kill can leave. Two tests kill from outside.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import assert_whole, run_jobs

from bielik_nemo.config import CHAIN

# Of six steps with a checkpoint after every second: which stage is killed before which operation on which file, and at
# how many steps a restart must begin (checkpoints are named by the index of their last step).
MOMENTS = {
    "import: weights without metadata": ("import_hf", "open", "import_hf/megatron.partial/*/.metadata.tmp", 1, None),
    "import: all but the manifest": ("import_hf", "os.rename", "import_hf/manifest.json", 1, None),
    "data: tokens without their index": ("data", "os.rename", "data/train/000.idx", 1, None),
    "score: before the result": ("score", "os.rename", "score/importance.json", 1, None),
    "prune: half a checkpoint": ("prune", "open", "prune/megatron.partial/weights/.metadata.tmp", 1, None),
    "distill: in the index of samples": ("distill", "open", "distill/index_cache/*train-shuffle_index.npy", 1, 0),
    "distill: between two checkpoints": ("distill", "open", "distill/metrics.jsonl", 5, 2),
    "distill: in a checkpoint": ("distill", "open", "distill/checkpoints/step=3/weights/.metadata.tmp", 1, 2),
    "distill: new checkpoint, old one still there": ("distill", "open", "distill/checkpoints/step=1-unfinished", 2, 6),
    "distill: while the old one is removed": ("distill", "os.rmdir", "distill/checkpoints/step=1/weights", 1, 6),
    "distill: trained, weights half written": ("distill", "os.rename", "distill/megatron", 1, 6),
    "distill: all but the manifest": ("distill", "os.rename", "distill/manifest.json", 1, 6),
    "distill: while its scratch is removed": ("distill", "os.rmdir", "distill/checkpoints/step=5", 1, 6),
    "export: before the parity gate": ("export", "os.rename", "export/hf", 1, None),
    "evaluate: all but the manifest": ("evaluate", "os.rename", "evaluate/manifest.json", 1, None),
}

RANDOM = "at random"


def kill_and_restart(jobs: list[dict], folder: Path) -> Iterator[tuple[dict, dict]]:
    """Run every job twice, killed and not; yield both outcomes of each."""
    results = run_jobs([{**job, "kill": kill} for job in jobs for kill in (job["kill"], None)], folder)
    yield from zip(results[::2], results[1::2], strict=True)


def at_random(job: dict, kills: int, records: int, seed: int) -> list[dict]:
    """A job killed so many times, each time somewhere after one of its first records of training, then left alone."""
    draw = random.Random(seed)
    moments = [["open", "distill/metrics.jsonl", draw.randint(2, records), draw.uniform(0, 0.2)] for _ in range(kills)]
    return [{**job, "kill": kill} for kill in (*moments, None)]


@pytest.fixture(scope="module")
def outcomes(chain, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """Each moment's run directory, with what happened in the killed and in the restarted process."""
    jobs = [
        {
            "run_dir": str(chain.copy("killed", before=stage)),
            "overrides": chain.overrides,
            "stages": CHAIN[: CHAIN.index(stage) + 1],
            "kill": kill,
        }
        for stage, *kill, _ in MOMENTS.values()
    ]
    twice = [{**job, "kill": kill} for job in jobs for kill in (job["kill"], None)]
    again = {"run_dir": str(chain.copy("again", before="distill")), "overrides": chain.overrides, "stages": CHAIN[:5]}
    random_jobs = at_random(again, kills=2, records=4, seed=1)
    results = run_jobs([*twice, *random_jobs], tmp_path_factory.mktemp("kill"))
    happened = zip(results[: len(twice) : 2], results[1 : len(twice) : 2], strict=True)
    found = {name: (Path(job["run_dir"]), *both) for name, job, both in zip(MOMENTS, jobs, happened, strict=True)}
    return found | {RANDOM: (Path(again["run_dir"]), *results[len(twice) :])}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_this_moment_changes_nothing(moment: str, chain, outcomes):
    run_dir, killed, restarted = outcomes[moment]
    stage, *_, steps = MOMENTS[moment]
    assert killed["ended"] == signal.SIGKILL, f"never came to it; see {run_dir}.out"
    assert restarted["ended"] == 0, f"see {run_dir}.out"
    for name in CHAIN[: CHAIN.index(stage) + 1]:
        assert chain.result(run_dir, name) == chain.result(chain.finished, name), name
    touched = {path.split("/")[0] for _, path in restarted["operations"]}
    assert touched & set(CHAIN) == {stage}, "a finished stage was touched"
    assert_whole(run_dir)
    if steps is not None:
        records = [o for o in restarted["operations"] if o == ["open", "distill/metrics.jsonl"]]
        # Six steps; held-out loss before the first, after the third and after the sixth.
        assert len(records) == 6 - steps + {0: 3, 2: 2, 4: 1, 6: 0}[steps]


def test_kills_at_random_moments_change_nothing(chain, outcomes):
    """Twice, at moments that a seed draws; the slow test below is the thorough one."""
    run_dir, *attempts = outcomes[RANDOM]
    assert [attempt["ended"] for attempt in attempts] == [signal.SIGKILL] * 2 + [0], f"see {run_dir}.out"
    assert chain.result(run_dir, "distill") == chain.result(chain.finished, "distill")
    assert_whole(run_dir)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(3))
def test_five_kills_at_random_moments_change_nothing(seed: int, chain, tmp_path: Path):
    """24 steps, a checkpoint after every third: no attempt does a step again that is behind the newest checkpoint."""
    longer = [*chain.overrides, "trainer.max_steps=24", "trainer.checkpoint_every=3"]
    job = {"overrides": longer, "stages": CHAIN[:5]}
    whole, killed = ({**job, "run_dir": str(chain.copy(name, before="distill"))} for name in ("whole", "killed"))
    first, *attempts = run_jobs([{**whole, "kill": None}, *at_random(killed, 5, 7, seed)], tmp_path)
    assert [attempt["ended"] for attempt in attempts] == [signal.SIGKILL] * 5 + [0], f"see {killed['run_dir']}.out"
    one, two = (chain.result(Path(each["run_dir"]), "distill") for each in (whole, killed))
    assert one == two
    assert one["metrics.jsonl"][-1]["step"] == 24
    records = [attempt["operations"].count(["open", "distill/metrics.jsonl"]) for attempt in (first, *attempts)]
    assert records[0] <= sum(records[1:]) <= records[0] + 5 * (3 + 2)  # lost: at most three steps, two measurements
    assert_whole(Path(killed["run_dir"]))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_kill_at_every_twelfth_operation_of_the_whole_chain(chain, tmp_path: Path):
    """Some minutes: a fresh run for each, killed at operations that nobody chose."""
    plain = {"run_dir": str(chain.empty("operations")), "overrides": chain.overrides, "kill": None}
    ((first, again),) = kill_and_restart([plain], tmp_path)
    assert first["ended"] == again["ended"] == 0
    seen: dict[tuple[str, str], int] = {}
    moments = []
    for operation, path in first["operations"]:
        # Process ids, hashes and times are parts of names.
        path = re.sub(rf"\.{first['pid']}\.|/[0-9a-f]{{32}}-|tfevents\..*", "*", path)
        seen[operation, path] = seen.get((operation, path), 0) + 1
        moments.append([operation, path, seen[operation, path]])
    jobs = [{**plain, "run_dir": str(chain.empty("killed")), "kill": kill} for kill in moments[5::12]]
    for job, (killed, restarted) in zip(jobs, kill_and_restart(jobs, tmp_path), strict=True):
        assert (killed["ended"], restarted["ended"]) == (signal.SIGKILL, 0), job["kill"]
        for name in CHAIN:
            assert chain.result(Path(job["run_dir"]), name) == chain.result(chain.finished, name), (job["kill"], name)
        assert_whole(Path(job["run_dir"]))


def start(chain, run_dir: Path, *overrides: str) -> subprocess.Popen:
    """`bielik-nemo pipeline` in a session of its own, output into a file beside the run."""
    command = [sys.executable, "-c", "import sys; from bielik_nemo.cli import main; sys.exit(main())"]
    command += ["pipeline", "experiment=tiny", *chain.overrides, f"run.dir='{run_dir}'", *overrides]
    with open(f"{run_dir}.out", "ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)


def wait_for(condition, process: subprocess.Popen, run_dir: Path) -> None:
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode} before it was killed; see {run_dir}.out"
        time.sleep(0.002)


def trained_steps(run_dir: Path) -> int:
    """Steps on record since the newest start."""
    path = run_dir / "distill" / "metrics.jsonl"
    return path.read_text().count('"loss"') if path.is_file() else 0


def locked(run_dir: Path) -> bool:
    with open(run_dir / ".lock") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def processes(word: str) -> list[str]:
    """Command lines that contain a word, of all processes that are not dead yet."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [line for line in lines if word in line]


def test_sigkill_of_the_process_group_while_distilling(chain):
    """Everything before distillation is finished; the kill comes after the checkpoint of step 2."""
    run_dir = chain.copy("group", before="distill")
    process = start(chain, run_dir)
    wait_for(lambda: trained_steps(run_dir) >= 3, process, run_dir)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (run_dir / "distill" / "manifest.json").exists()
    before = {stage: chain.manifest(run_dir, stage).started for stage in CHAIN[:4]}
    chain.run(run_dir)
    assert {stage: chain.manifest(run_dir, stage).started for stage in CHAIN[:4]} == before
    for stage in CHAIN:
        assert chain.result(run_dir, stage) == chain.result(chain.finished, stage), stage
    assert_whole(run_dir)
    assert (run_dir / "report.html").is_file()


def test_sigkill_of_the_parent_alone_ends_all_ranks(chain):
    """Two ranks: when the process that started them is gone they write no more, and only then is the lock free."""
    run_dir = chain.copy("parent", before="distill")
    process = start(chain, run_dir, "parallel=tp2", "pipeline.stages=[import_hf,data,score,prune,distill]")
    wait_for(lambda: trained_steps(run_dir) >= 3, process, run_dir)
    assert len(processes(f"{run_dir}/distill/config.yaml")) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while locked(run_dir):
        assert time.monotonic() < deadline, "ranks hold the lock a minute after their parent is gone"
        time.sleep(0.002)
    assert processes(f"{run_dir}/distill/config.yaml") == []
    assert not (run_dir / "distill" / "manifest.json").exists()
    metrics = run_dir / "distill" / "metrics.jsonl"
    before = metrics.read_text().splitlines()
    # The layout may change on the way: one process goes on where two were killed.
    chain.run(run_dir, stages=CHAIN[:5])
    assert metrics.read_text().splitlines()[:3] == before[:3], "step 0 to 2 were done again"
    losses, expected = (chain.result(d, "distill")["metrics.jsonl"] for d in (run_dir, chain.finished))
    assert [r["step"] for r in losses] == [r["step"] for r in expected] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    for one, other in zip(losses, expected, strict=True):
        assert one.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-4)
        assert one.get("held_out_loss", 0) == pytest.approx(other.get("held_out_loss", 0), rel=1e-5)
    assert_whole(run_dir)
