import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bielik_nemo.losses import vocab_parallel


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], list[dict[str, Tensor]]]:
    """`launched(file, count)`: what each of so many gloo ranks, started with that file and a directory, left there.

    A rank writes `<rank>.safetensors`.
    """

    def launch(file: str, count: int) -> list[dict[str, Tensor]]:
        directory = tmp_path_factory.mktemp("ranks")
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        done = subprocess.run(
            [*torchrun, file, str(directory)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return [load_file(directory / f"{rank}.safetensors") for rank in range(count)]

    return launch


@pytest.fixture
def chunk_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """`chunk_rows(rows, width)` makes every loss work in chunks of that many rows of logits of that width."""
    return lambda rows, width: monkeypatch.setitem(vocab_parallel.CHUNK_BYTES, "cpu", 4 * rows * width)


@pytest.fixture
def peak_bytes(tmp_path: Path) -> Callable[[Callable[[], object]], int]:
    """`peak_bytes(function)`: most bytes that torch held on the CPU at once while it ran, beyond those held before.

    Read from the profiler's record of every allocation, temporaries inside a kernel included.
    """

    def measure(function: Callable[[], object]) -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            function()
        record.export_chrome_trace(str(tmp_path / "trace.json"))
        events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        steps = [event["args"] for event in events if event["name"] == "[memory]"]
        before = steps[0]["Total Allocated"] - steps[0]["Bytes"]
        return max(step["Total Allocated"] for step in steps) - before

    return measure
