"""What `bielik-nemo check` estimates a training stage to need, beside what it needed at most.

    python benchmarks/memory.py --directory /scratch tiny smollm2

Every stage runs in a process of its own, as it does as a job, for a few steps: the second has everything that the last
has, and a checkpoint is written after it. Measured is what the stage records, `peak_memory_gib`: resident memory of the
fullest rank, or on a GPU what was allocated, which the runtime's share of the estimate is not part of. Ends with status
1 where an estimate is more than a tenth off.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bielik_nemo import check, preflight
from bielik_nemo.budget import GIB
from bielik_nemo.check import layout
from bielik_nemo.config import Config, compose

PREPARED = {
    "distill": ("import_hf", "data", "score", "prune"),
    "sft": ("chat",),
    "dpo": ("preferences", "reference"),
    "grpo": ("tasks",),
}
"""Training stages, and those that come before each."""
STEPS = 4
SHORT = [f"trainer.max_steps={STEPS}", "optim.warmup_steps=1", "trainer.checkpoint_every=2", "trainer.validate_every=2"]
SHORT += [f"{stage}.max_steps={STEPS}" for stage in ("sft", "dpo", "grpo")]
SHORT += [f"{stage}.warmup_steps=1" for stage in ("sft", "dpo", "grpo")]
TOLERANCE = 0.1


def measure(experiment: str, directory: Path, *overrides: str) -> Iterator[tuple[str, float, float]]:
    """Each training stage with its peak and the estimate, in GiB.

    Args:
        experiment: which.
        directory: where its run is made; what is done there is not done again.
        overrides: of its configuration.
    """
    given = [f"experiment={experiment}", f"run.dir={directory}", *SHORT, *overrides]
    for stage, before in PREPARED.items():
        for name in (*before, stage):
            _run(name, given)
        config = compose("", given)
        yield stage, *_both(config, stage)


def _run(stage: str, overrides: Sequence[str]) -> None:
    code = "import sys; from bielik_nemo.cli import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", code, stage, *overrides], check=True, stdout=subprocess.DEVNULL)


def _both(config: Config, stage: str) -> tuple[float, float]:
    costs, parallel = preflight.costs(config), config.parallel
    built = layout.build({"target": costs.target}, parallel.tp, parallel.pp)
    (need,) = check.needs(costs, [stage], built.libraries)
    gpu = config.cluster.gpu_memory_gib
    return need.measured["peak_memory_gib"], sum(v for k, v in need.memory.items() if k != "runtime" or not gpu) / GIB


def main() -> int:
    """Measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="where runs are made")
    parser.add_argument("--override", action="append", default=[], help="of the configuration")
    arguments = parser.parse_args()
    worst = 0.0
    for experiment in arguments.experiments:
        for stage, peak, estimated in measure(experiment, arguments.directory / experiment, *arguments.override):
            off = estimated / peak - 1
            worst = max(worst, abs(off))
            print(f"| {experiment} | {stage} | {peak:.2f} | {estimated:.2f} | {off:+.1%} |", flush=True)
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
