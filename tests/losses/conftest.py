import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.profiler import ProfilerActivity, profile

from bielik_nemo.losses import vocab_parallel


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
