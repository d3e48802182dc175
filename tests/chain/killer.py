"""Run pipelines in forks of one process that has NeMo loaded, and kill some of them at a chosen file operation.

Not a test: `python killer.py jobs.json results.json`. A job is `{"run_dir", "overrides", "stages", "kill"}`, maybe with
the size of a teacher's shards, `"shard_bytes"`; `kill` is null, or `[operation, pattern, n]`: SIGKILL just before the
n-th (from 1) such operation on a path that matches, below the run directory; with a fourth entry so many seconds later.
Every change of the directory tree is an operation, so that "at any moment" can be listed. A result is
`{"ended", "pid", "seconds", "operations"}`: the signal or minus the exit status, and `[operation, path]` pairs.
"""

import fnmatch
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from bielik_nemo import config, pipeline
from bielik_nemo.config import CHAIN
from bielik_nemo.engine import teacher_cache

OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.truncate")


def watch(run_dir: Path, kill: list | None, journal: int) -> None:
    """Write every operation below `run_dir` to a file descriptor, and die at the one that is asked for."""
    root, seen = f"{run_dir}{os.sep}", 0

    def hook(event: str, args: tuple) -> None:
        nonlocal seen
        if event not in OPERATIONS or isinstance(args[0], int):
            return
        if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR):
            return
        name = os.fsdecode(args[1] if event in ("os.rename", "os.symlink") else args[0])
        if event in ("os.remove", "os.rmdir") and args[1] not in (-1, None):  # relative to an open directory
            name = os.path.join(os.readlink(f"/proc/self/fd/{args[1]}"), name)
        if not os.path.abspath(name).startswith(root):
            return
        path = os.path.abspath(name)[len(root) :]
        os.write(journal, (json.dumps([event, path]) + "\n").encode())
        if kill and event == kill[0] and fnmatch.fnmatch(path, kill[1]):
            seen += 1
            if seen == kill[2] and len(kill) == 4:
                threading.Timer(kill[3], os.killpg, (0, signal.SIGKILL)).start()
            elif seen == kill[2]:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(hook)


def run(job: dict) -> dict:
    """Run one job in a fork of this process."""
    run_dir = Path(job["run_dir"])
    journal = run_dir.with_name(run_dir.name + ".journal")
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            with open(run_dir.with_name(run_dir.name + ".out"), "ab") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            watch(run_dir, job.get("kill"), os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
            teacher_cache.SHARD_BYTES = job.get("shard_bytes", teacher_cache.SHARD_BYTES)
            pipeline.run(config.compose("tiny", [*job["overrides"], f"run.dir={run_dir}"]), job.get("stages"))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    operations = [json.loads(line) for line in journal.read_text().splitlines()]
    ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)
    return {"ended": ended, "pid": child, "seconds": round(time.monotonic() - start, 2), "operations": operations}


def main(jobs: str, results: str) -> None:
    for stage in CHAIN:
        importlib.import_module(f"bielik_nemo.stages.{stage}")
    found = [run(job) for job in json.loads(Path(jobs).read_text())]
    Path(results).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
