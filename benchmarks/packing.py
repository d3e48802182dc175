"""What packing saves: SFT of SmolLM2-135M with many conversations in a sequence and with one, on the same set.

    OMP_NUM_THREADS=1 python benchmarks/packing.py runs/packing

The sequence is four times as long as the set's conversations in the mean. Both ways take turns in one process, from the
same weights. Prints Markdown: how full the sequences are, and tokens of text per second, of wall time and of CPU time
of all threads, over all steps but the first of each turn, without held-out measurements.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import fiddle as fdl
import lightning.pytorch as pl
import nemo_run as run

from bielik_nemo import artifacts, pipeline
from bielik_nemo.config import Config, compose
from bielik_nemo.engine import distributed
from bielik_nemo.stages import sft
from bielik_nemo.stages.nodes import known

SET = "builtin:polish-corrections"
WAYS = {"one conversation in a sequence": False, "packed": True}


class Clock(pl.Callback):
    """Wall and CPU seconds from the start of each step to its end, one line each."""

    def __init__(self, path: str):
        self.path = path

    def on_train_batch_start(self, *_: Any) -> None:
        """Note the time."""
        self.start = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        """Write what has passed since."""
        with open(self.path, "a") as stream:
            stream.write(f"{time.perf_counter() - self.start[0]} {time.process_time() - self.start[1]}\n")


@dataclass
class Measured:
    """Of one way to fill sequences: steps of all turns, without the first of each."""

    filled: float = 0.0
    seconds: list[tuple[float, float]] = field(default_factory=list)  # wall, CPU

    def rate(self, clock: int, positions: int) -> float:
        """Tokens of text per second in the median step of so many positions."""
        return positions * self.filled / median(each[clock] for each in self.seconds)


def turn(config: Config, run_dir: Path, into: Measured) -> None:
    """Train in this process."""
    shutil.rmtree(run_dir / "sft", ignore_errors=True)
    (run_dir / "sft").mkdir()
    times = run_dir / "sft" / "times"
    work = sft.build(config, run_dir)
    work.trainer.callbacks.append(run.Config(Clock, str(times)))
    distributed.ensure_rendezvous()
    try:
        fdl.build(work)()
    finally:
        distributed.reset_parallel_state()
    into.filled = known(sft.planned(config, run_dir)).filled
    wall_and_cpu = [line.split() for line in times.read_text().splitlines()]
    into.seconds += [(float(wall), float(cpu)) for wall, cpu in wall_and_cpu[1:]]


def main() -> None:
    """Measure both ways and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--model", default="smollm2", choices=("smollm2", "tiny"))
    parser.add_argument("--steps", type=int, default=5, help="of a turn")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    common = [f"run.dir={args.run_dir}", "pipeline.stages=[import_hf,chat,sft]", f"sft.sources=[{{path: '{SET}'}}]"]
    common += [f"sft.max_steps={args.steps}", "sft.warmup_steps=0", "sft.global_batch_size=4", "sft.micro_batch_size=4"]
    common += ["chat.held_out_tokens=1", "trainer.log_every=1"]
    pipeline.run(compose(args.model, [*common, "sft.seq_length=512"]), ["import_hf", "chat"])
    counts = artifacts.read_json(args.run_dir / "chat" / "summary.json")["train"]
    mean = counts["tokens"] / counts["conversations"]
    length = round(4 * mean / 8) * 8
    measured = {name: Measured() for name in WAYS}
    for _ in range(args.rounds):
        for name, packing in WAYS.items():
            settings = [*common, f"sft.seq_length={length}", f"sft.packing={str(packing).lower()}"]
            turn(compose(args.model, settings), args.run_dir, measured[name])
    print(f"{args.model}: {counts['conversations']:,} conversations of {mean:.0f} tokens, sequences of {length}\n")
    print("| sequences | filled | tokens/s | ratio | tokens per CPU second | ratio |")
    print(f"|{' --- |' * 6}")
    alone = [measured["one conversation in a sequence"].rate(clock, 4 * length) for clock in (0, 1)]
    for name, each in measured.items():
        wall, cpu = (each.rate(clock, 4 * length) for clock in (0, 1))
        rates = f"{wall:,.0f} | {wall / alone[0]:.2f} | {cpu:,.0f} | {cpu / alone[1]:.2f}"
        print(f"| {name} | {each.filled:.1%} | {rates} |")


if __name__ == "__main__":
    main()
