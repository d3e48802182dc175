"""The memory that `bielik-nemo check` estimates, beside what a stage needs in a process of its own."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from bielik_nemo import check, preflight
from bielik_nemo.budget import GIB
from bielik_nemo.check import layout

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"
COMMAND = "import sys; from bielik_nemo.cli import main; sys.exit(main())"
BATCH = ("data.global_batch_size=32", "data.micro_batch_size=32")  # so that activations are a good part of it


def test_the_estimate_of_tiny_is_within_a_tenth_of_the_peak(chain):
    """Libraries 0.7 GiB; of 3 layers * 32*128 rows * (6*64 + 4*128 + 5*96 + 4*4*128 = 3424) * 4 bytes: 0.16."""
    run_dir = chain.copy("memory", before="distill")
    overrides = ["experiment=tiny", *chain.overrides, f"run.dir='{run_dir}'", *BATCH]
    subprocess.run([sys.executable, "-c", COMMAND, "distill", *overrides], check=True, stdout=subprocess.DEVNULL)
    costs = preflight.costs(chain.config(run_dir, *BATCH))
    (need,) = check.needs(costs, ["distill"], layout.build({"target": costs.target}, 1, 1).libraries)
    peak = chain.manifest(run_dir, "distill").metrics["peak_memory_gib"]
    assert sum(need.memory.values()) / GIB == pytest.approx(peak, rel=0.1)
    assert need.memory["activations"] / GIB > 0.1 * peak  # without them it would be wrong


@pytest.mark.slow
def test_the_estimates_of_smollm2_are_within_a_tenth_of_the_peaks(tmp_path: Path):
    """A few steps of distillation and of SFT."""
    spec = importlib.util.spec_from_file_location("memory_benchmark", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    first = itertools.islice(benchmark.measure("smollm2", tmp_path), 2)
    found = {stage: estimated / peak for stage, peak, estimated in first}
    assert found == {stage: pytest.approx(1, abs=0.1) for stage in ("distill", "sft")}
