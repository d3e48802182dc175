"""What a student learns from a cached teacher, and what that costs: SmolLM2-135M, cut by a fifth, after equal steps.

    OMP_NUM_THREADS=1 python benchmarks/teacher_cache.py runs/teacher_cache     # started again, it goes on

One run directory: text, scores and the pruned student are made once; then every teacher in `TEACHERS` is run over the
same samples (the live one beside the student) and the same student is distilled from it, with the same order of samples
and schedule. Prints Markdown: held-out loss in nats per token, bytes that the cache takes per token (files as they are
on disk), and CPU seconds of a training step (median over the steps, all threads of the process, without held-out
measurements), absolute and relative to the step with a live teacher.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from statistics import median
from typing import Any

import fiddle as fdl
import lightning.pytorch as pl
import nemo_run as run

from bielik_nemo import artifacts, pipeline
from bielik_nemo.config import Config, compose
from bielik_nemo.engine import distributed, progress
from bielik_nemo.stages import distill

BEFORE = ["import_hf", "data", "score", "prune"]
LIVE = "full KL, live teacher"
TEACHERS = {
    LIVE: [],
    "sampled, 20 draws (default)": ["teacher.samples_per_token=20"],
    "top-k, k = 5": ["teacher.kind=top_k", "teacher.top_k=5"],
    "sampled, 8 draws": ["teacher.samples_per_token=8"],
    "top-k, k = 12": ["teacher.kind=top_k", "teacher.top_k=12"],
    "sampled, 50 draws": ["teacher.samples_per_token=50"],
}


class CpuTime(pl.Callback):
    """CPU seconds from the start of each step to its end, one line each."""

    def __init__(self, path: str):
        self.path = Path(path)

    def on_train_batch_start(self, *_: Any) -> None:
        """Note the time."""
        self.start = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        """Write what has passed since."""
        with open(self.path, "a") as stream:
            stream.write(f"{time.process_time() - self.start}\n")


def train(config: Config, run_dir: Path) -> dict[str, float]:
    """Distil in this process; held-out losses before and after, CPU seconds of a step."""
    here = run_dir / "distill"
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir()
    task = distill.build(config, run_dir)
    # Before the callback that measures held-out losses, so that a step ends for this one first.
    task.trainer.callbacks.insert(0, run.Config(CpuTime, path=str(here / "cpu.txt")))
    distributed.ensure_rendezvous()
    try:
        fdl.build(task)()
    finally:
        distributed.reset_parallel_state()
    losses = [r["held_out_loss"] for r in progress.read(here / "metrics.jsonl") if "held_out_loss" in r]
    seconds = median(map(float, (here / "cpu.txt").read_text().split()))
    return {"before": losses[0], "after": losses[-1], "cpu_seconds": seconds}


def measure(name: str, directory: Path, steps: int) -> dict[str, float]:
    """One teacher: its pass where it is cached, then the student."""
    cached = name != LIVE
    stages = [*BEFORE, *(["teacher"] if cached else []), "distill"]
    settings = [
        f"pipeline.stages=[{','.join(stages)}]",
        f"run.dir={directory}",
        f"trainer.max_steps={steps}",
        f"trainer.validate_every={steps}",
        "trainer.checkpoint_every=1000",
        *TEACHERS[name],
    ]
    config = compose("smollm2", settings)
    pipeline.run(config, stages[:-1])
    found = train(config, directory)
    shutil.rmtree(directory / "superseded", ignore_errors=True)
    if cached:
        found["bytes_per_token"] = artifacts.Manifest.read(directory / "teacher").metrics["bytes_per_token"]
    return found


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown, relative to the live teacher."""
    live = results[LIVE]
    lines = [
        f"The pruned student starts at {live['before']:.4f} nats per token.",
        "",
        "| teacher | bytes per token | held-out loss | against full KL | CPU s per step | of a live teacher's |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in results.items():
        size = f"{found['bytes_per_token']:.1f}" if "bytes_per_token" in found else "-"
        loss, seconds = found["after"], found["cpu_seconds"]
        lines.append(
            f"| {name} | {size} | {loss:.4f} | {loss / live['after'] - 1:+.2%} | {seconds:.2f} | "
            f"{seconds / live['cpu_seconds']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what has not run, then print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=32, help="of 1,024 tokens")
    options = parser.parse_args()
    file = options.directory / "results.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    for name in TEACHERS:
        if name not in results:
            results[name] = measure(name, options.directory, options.steps)
            artifacts.write_json(file, results)
            print(f"\n{table(results)}\n", flush=True)


if __name__ == "__main__":
    main()
