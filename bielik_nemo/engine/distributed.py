"""Process group and Megatron's parallel state for the stages that need a model but no trainer."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bielik_nemo.engine import cpu

_own: dict[str, str] = {}
"""Environment variables that `ensure_rendezvous` set."""


def rank() -> int:
    """Rank of this process as the launcher set it; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes as the launcher set it; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> torch.device:
    """Where this rank computes."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def ensure_rendezvous() -> None:
    """Give a process without a launcher an address of its own to meet itself at."""
    if "MASTER_ADDR" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    _own.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1"
    )
    os.environ.update(_own)


def init_process_group() -> None:
    """Connect all processes, each with its device."""
    ensure_rendezvous()
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
        torch.distributed.init_process_group("nccl", device_id=device())
    else:
        torch.distributed.init_process_group("gloo")


def reset_parallel_state() -> None:
    """Forget all process groups, so that the next stage of this process can lay out its own.

    Processes that torchrun started can do so only if they meet at another port next time: its store keeps the addresses
    of the first group, and a second one hangs.
    """
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
    from megatron.core.rerun_state_machine import destroy_rerun_state_machine

    parallel_state.destroy_model_parallel()
    destroy_num_microbatches_calculator()
    destroy_rerun_state_machine()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    while _own:
        os.environ.pop(_own.popitem()[0], None)
    gc.collect()
    cpu.trim()


@contextlib.contextmanager
def model_parallel(tp: int = 1, pp: int = 1, seed: int = 1234) -> Iterator[None]:
    """Lay out `tp * pp * dp` processes for the time of the block.

    Raises:
        ValueError: the number of processes is not a multiple of `tp * pp`.
    """
    cpu.enable()
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    if world_size() % (tp * pp):
        raise ValueError(f"{world_size()} processes cannot hold parallel.tp={tp} x parallel.pp={pp}")
    init_process_group()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)
    model_parallel_cuda_manual_seed(seed)
    try:
        yield
    finally:
        reset_parallel_state()


def barrier() -> None:
    """Wait for all ranks, where there are several."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


@contextlib.contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """Yield a directory for all ranks to write in, which becomes `directory` when the block ends.

    It replaces one that is there, and vanishes when rank 0 raises.
    """
    partial = directory.with_name(directory.name + ".partial")
    first = rank() == 0
    try:
        if first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        barrier()
        yield partial
        barrier()
        if first:
            shutil.rmtree(directory, ignore_errors=True)
            os.replace(partial, directory)
    except BaseException:
        if first:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    barrier()


def merged(own: dict) -> dict:
    """The entries of all ranks together; the same on every rank."""
    found: list[dict] = [{}] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, own)
    return {key: value for each in found for key, value in each.items()}


def from_first(value: Any) -> Any:
    """Rank 0's value on all ranks."""
    values = [value]
    if world_size() > 1:
        torch.distributed.broadcast_object_list(values, src=0, device=device())
    return values[0]
