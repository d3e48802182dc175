"""Megatron distributed checkpoints through NeMo's checkpoint IO: written whole, read without running foreign code.

The format is independent of tensor and pipeline parallelism, so a checkpoint written under one layout loads under
another. Two adaptations of megatron-core 0.15.3:

- A synchronous save starts a `multiprocessing` manager with spawn, which imports the main script again (about 10 s).
  A queue of this process serves a synchronous save just as well.
- `.metadata` is a pickle, and pickles can run code. Before a directory is loaded, its metadata is read by an unpickler
  that knows only the data classes of torch's own format. Objects beside the tensors are pickles too, which torch's
  planner reads in full: `torch.load` is told to read weights only.
"""

from __future__ import annotations

import contextlib
import enum
import multiprocessing
import os
import pickle
import queue
from collections.abc import Iterator
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bielik_nemo import stopping
from bielik_nemo.engine import distributed
from bielik_nemo.errors import CheckpointError

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

_DATA_MODULES = {
    "torch.distributed.checkpoint.filesystem",
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.planner",
    "megatron.core.dist_checkpointing.strategies.torch",
}
_DATA_NAMES = {
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
    "builtins.set",
    "collections.OrderedDict",
    "pathlib.PosixPath",
}


def _enum_member(kind: type, name: str) -> enum.Enum:
    """What some Python versions name `getattr` for, to pickle an enumeration's member; getattr would reach any code."""
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        raise CheckpointError(f"takes {name!r} of {kind!r}, which is not an enumeration")
    return kind[name]


class _DataOnly(pickle.Unpickler):
    """An unpickler for checkpoint metadata that refuses every other name.

    Of the modules only the classes they define themselves: other names, dotted ones above all, reach what they import.
    """

    def find_class(self, module: str, name: str):
        full = f"{module}.{name}"
        if full == "builtins.getattr":
            return _enum_member
        if full in _DATA_NAMES or module in _DATA_MODULES:
            found = super().find_class(module, name)
            if full in _DATA_NAMES or (isinstance(found, type) and found.__module__ == module):
                return found
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise CheckpointError(f"names {full}, which is not part of torch's checkpoint format")


@contextlib.contextmanager
def in_process_results_queue() -> Iterator[None]:
    """Let the synchronous saves of the block report through a plain queue instead of a spawned manager process.

    Asynchronous saves run in another process and need Megatron's own queue, so it is put back.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    before = filesystem_async._results_queue
    filesystem_async._results_queue = queue.Queue()
    try:
        yield
    finally:
        filesystem_async._results_queue = before


@contextlib.contextmanager
def results_queue_that_ends_with_us() -> Iterator[None]:
    """Let the asynchronous saves of the block report through a manager of our own.

    Megatron's outlives a run that is killed, dies of a signal to all processes of a job, in the middle of a save, and
    is spawned like the one above.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    before = filesystem_async._results_queue
    manager = SyncManager(ctx=multiprocessing.get_context("fork"))
    manager.start(_serve, (os.getpid(),))
    filesystem_async._results_queue = manager.Queue()
    try:
        yield
    finally:
        filesystem_async._results_queue = before
        manager.shutdown()


def _serve(parent: int) -> None:
    stopping.ignore()
    stopping.end_with(parent)


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """Have every `torch.load` of the block refuse pickles that name code, whatever its caller asked for."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def check(directory: Path) -> None:
    """Refuse a directory that is not a finished, harmless checkpoint.

    Raises:
        CheckpointError: missing, unfinished, or metadata that names foreign code.
    """
    weights = directory / "weights"
    metadata = weights / ".metadata"
    if not metadata.is_file():
        raise CheckpointError(f"{directory}: not a finished Megatron checkpoint (no {metadata.relative_to(directory)})")
    try:
        with open(metadata, "rb") as stream:
            _DataOnly(stream).load()
    except CheckpointError as error:
        raise CheckpointError(f"{metadata}: {error}") from None
    except Exception as error:
        raise CheckpointError(f"{metadata}: damaged ({error})") from None


def _io():
    from nemo.lightning.io.pl import MegatronCheckpointIO

    return MegatronCheckpointIO(save_ckpt_format="torch_dist", async_save=False)


def save(model: GPTModel, directory: Path) -> None:
    """Write the weights of a model that is spread over all ranks; `directory` appears only when complete.

    What is only trained beside it, the projections of `hidden_states`, is left out; adapters are added to the weights.
    """
    from bielik_nemo.engine import lora  # NeMo: not where checkpoints are only checked

    state = model.sharded_state_dict(prefix="module.")
    state = {name: value for name, value in state.items() if not name.startswith("module.hidden_states.")}
    state = lora.merged(model, state, "module.")
    with distributed.whole_directory(directory) as partial, in_process_results_queue():
        _io().save_checkpoint({"state_dict": state}, partial)


def load(model: GPTModel, directory: Path) -> None:
    """Fill a model with the weights of a checkpoint written under any layout.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or its tensors are not this model's.
    """
    from torch.distributed.checkpoint import CheckpointException  # a BaseException, one cause for each rank

    check(directory)
    try:
        with _weights_only():
            wanted = {"state_dict": model.sharded_state_dict(prefix="module.")}
            state = _io().load_checkpoint(directory, wanted, strict=True)
    except (Exception, CheckpointException) as error:
        cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        reason = str(cause).strip().partition("\n")[0]
        raise CheckpointError(f"{directory}: cannot be loaded into this model ({reason})") from error
    weights = {name.removeprefix("module."): value for name, value in state["state_dict"].items()}
    model.load_state_dict(weights, strict=True)
