"""How fast the device of this process moves memory: what bounds decoding, measured."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bielik_nemo.engine import distributed

ELEMENTS = 2**27
"""Of a block in float32, 512 MiB: far more than caches hold."""

REPEATS = 5


def gb_s() -> float:
    """1e9 bytes a second: the most of several passes that copy a block of memory (each byte counts twice) or sum it."""
    device = distributed.device()
    block = torch.ones(ELEMENTS, device=device)
    copy = torch.empty_like(block)
    size = block.numel() * block.element_size()
    passes = {lambda: copy.copy_(block): 2 * size, block.sum: size}
    return max(moved / _seconds(once) for once, moved in passes.items() for _ in range(REPEATS)) / 1e9


def _seconds(once: Callable[[], object]) -> float:
    wait()
    start = time.perf_counter()
    once()
    wait()
    return time.perf_counter() - start


def wait() -> None:
    """Until the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device_name() -> str:
    """What computes, in words: the GPU, or the CPU and the threads that torch uses of it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    threads = torch.get_num_threads()
    return f"{found[1] if found else platform.machine()}, {threads} thread{'s' * (threads > 1)}"
