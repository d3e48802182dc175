"""How much memory a rank has needed at most: of its GPU what was allocated, without one what was resident."""

from __future__ import annotations

import contextlib
import re
import resource
from pathlib import Path

import torch

from bielik_nemo.engine import distributed


def start() -> None:
    """Count from here on; where the system cannot, from the beginning of the process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark falls to what is resident now


def peak() -> int:
    """Bytes at most on this rank since `start`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, the one system without /proc
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def fullest() -> int:
    """`peak` of the rank with the most; a collective of all, where there are several, the same on every one."""
    if distributed.world_size() == 1:
        return peak()
    found = torch.tensor(peak(), device=distributed.device())
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return int(found)
