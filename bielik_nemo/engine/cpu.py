"""CPU backend: unmodified NeMo, Megatron-Core and Model Optimizer on a machine without CUDA.

Those libraries name `cuda` where they mean "the device of this rank". `enable()` redirects such requests to the CPU and
does nothing at all where `torch.cuda.is_available()`. What is redirected, and why (torch 2.13, nemo 2.7.3,
megatron-core 0.15.3, modelopt 0.43):

- `torch.cuda.*` bookkeeping (streams, events, device index, memory counters): called without a check.
- CUDA's random state: Megatron's tracker gets the CPU generator, so that its named states mean what they say.
- `device="cuda"`, `device=0`, `.cuda()`, `.to("cuda")`, `pin_memory=True`: caught by one `TorchFunctionMode`.
- `Tensor.type()` without arguments: Megatron's gradient clipping compares it with 'torch.cuda.FloatTensor'.
- `all_gather_into_tensor` of 0-d tensors: gloo refuses them, NCCL does not (Model Optimizer's layer dropping).
- NVTX ranges: no library to mark.

Numerics are untouched: no operator is replaced, only the place where it runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")
_enabled = False


def _is_cuda(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return (isinstance(device, str) and device.startswith("cuda")) or type(device) is int


_MOVES = (torch.Tensor.to, torch._C._nn._parse_to)  # the device is a positional argument; _parse_to is Module.to's


class _Redirect(TorchFunctionMode):
    """Rewrites the device of every torch call that asks for CUDA."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _MOVES:
            args = tuple(_CPU if _is_cuda(a) else a for a in args)
        if not kwargs:  # nearly always, and this stands before every operation
            return func(*args)
        if _is_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": _CPU}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        return func(*args, **kwargs)


class _Stream:
    """A stream on a device that has none: everything is already in order."""

    cuda_stream = 0
    device = _CPU

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return False

    def _done(self, *args, **kwargs):
        return None

    wait_stream = wait_event = synchronize = record_event = record = wait = _done

    def query(self) -> bool:
        """Whether all work is finished; on CPU it always is."""
        return True

    def elapsed_time(self, end) -> float:
        """Milliseconds between two events; not measured here."""
        return 0.0


def _returning(value: Any = None):
    """A function of its own for each name: torch._dynamo refuses one object under two names."""
    return lambda *args, **kwargs: value


def _patch_cuda_namespace() -> None:
    stream = _Stream()
    cuda = torch.cuda
    cuda.Stream = cuda.Event = _Stream
    cuda.stream = lambda s=None: contextlib.nullcontext()
    cuda.device = lambda d=None: contextlib.nullcontext()
    cuda.current_stream = lambda *a, **k: stream
    cuda.default_stream = lambda *a, **k: stream
    cuda.current_device = _returning(0)
    cuda.device_count = lambda: int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cuda.get_device_capability = _returning((0, 0))
    cuda.is_initialized = _returning(True)
    cuda.memory_stats = _returning({})
    for name in ("synchronize", "set_device", "empty_cache", "reset_peak_memory_stats", "ipc_collect"):
        setattr(cuda, name, _returning())
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(cuda, name, _returning(0))
    for name in ("range_push", "range_pop", "mark"):
        setattr(cuda.nvtx, name, _returning())


class _Generators:
    """The default generators by device index: here the CPU's, whatever the index."""

    def __getitem__(self, index: Any) -> torch.Generator:
        return torch.default_generator


def _patch_random() -> None:
    cuda = torch.cuda
    cuda.get_rng_state = cuda.random.get_rng_state = lambda *a, **k: torch.get_rng_state()
    cuda.set_rng_state = cuda.random.set_rng_state = lambda state, *a, **k: torch.set_rng_state(state)
    cuda.manual_seed = cuda.random.manual_seed = lambda seed: torch.default_generator.manual_seed(int(seed))
    cuda._lazy_call = lambda call, **k: call()
    cuda.default_generators = _Generators()
    # Megatron warns whenever the CPU's state changes inside its CUDA tracker; here that state is the one it tracks.
    logging.getLogger("megatron.core.tensor_parallel.random").addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )


def _patch_tensors() -> None:
    torch.Tensor.cuda = lambda self, *a, **k: self
    torch.Tensor.pin_memory = lambda self, *a, **k: self
    torch.nn.Module.cuda = lambda self, *a, **k: self
    original_type = torch.Tensor.type

    def tensor_type(self, *args, **kwargs):
        name = original_type(self, *args, **kwargs)
        if args or kwargs:
            return name
        return name.replace("torch.", "torch.cuda.", 1) if "cuda" not in name else name

    torch.Tensor.type = tensor_type


def _patch_collectives() -> None:
    gather = torch.distributed.all_gather_into_tensor

    def all_gather_into_tensor(output, input, *args, **kwargs):
        return gather(output, input.reshape(1) if input.ndim == 0 else input, *args, **kwargs)

    torch.distributed.all_gather_into_tensor = all_gather_into_tensor


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks: logits are hundreds of MB, and mapping them anew costs a fifth of a step."""
    m_trim_threshold, m_mmap_max = -1, -4  # from malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)


def trim() -> None:
    """Give back what is free, where freed blocks are kept: after a stage, for what comes behind it in this process."""
    if _enabled:
        with contextlib.suppress(OSError, AttributeError):  # malloc_trim is glibc's
            ctypes.CDLL(None).malloc_trim(0)


def unwatched() -> contextlib.AbstractContextManager:
    """For a block in which nothing names a device: a quarter of the time in which a small model reads a token."""
    return torch._C.DisableTorchFunction() if _enabled else contextlib.nullcontext()


def enable() -> bool:
    """Redirect CUDA requests to the CPU where there is no CUDA device; safe to call again.

    Returns:
        Whether the redirection is in force.
    """
    global _enabled
    if torch.cuda.is_available() or _enabled:
        return _enabled
    # Megatron compiles a handful of one-line functions; on CPU that costs seconds and wins nothing.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    _patch_cuda_namespace()
    _patch_random()
    _patch_tensors()
    _patch_collectives()
    _keep_freed_memory()
    _Redirect().__enter__()
    _enabled = True
    return True
