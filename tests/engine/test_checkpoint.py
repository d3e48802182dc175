"""A Megatron checkpoint is written whole or not at all, and reading one runs no code that it brings."""

from __future__ import annotations

import errno
import io
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import checkpoint, distributed, model
from bielik_nemo.errors import CheckpointError


@pytest.fixture(scope="module")
def good(single) -> Path:
    """A finished checkpoint; not to be changed."""
    single["parity llama"]
    return single.path / "megatron" / "llama"


@pytest.fixture
def copy(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "megatron"))


def load(directory: Path, inputs: Path, **change) -> None:
    a = replace(Architecture.from_hf(inputs / "llama"), **change)
    with distributed.model_parallel():
        checkpoint.load(model.build(model.gpt_config(a, seq_length=32), a), directory)


@pytest.mark.parametrize("layout", ["single", "tp2", "pp2"], indirect=True)
def test_what_we_write_is_accepted(layout):
    layout["distill llama"]
    for directory in (layout.path / "megatron" / "llama", layout.path / "llama" / "megatron"):
        checkpoint.check(directory)
    training = [path.parents[1] for path in (layout.path / "llama" / "checkpoints").glob("*/weights/.metadata")]
    assert training
    for directory in training:  # with the optimiser's state
        checkpoint.check(directory)


class Payload:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def by_name(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls `module.name(argument)`, whatever Python itself would write (protocol 4)."""
    pickler = b"\x80\x04"
    for text in (module, name):
        pickler += b"\x8c" + bytes([len(text)]) + text.encode()
    pickler += b"\x93\x8c" + bytes([len(argument)]) + argument.encode() + b"\x85R."
    return pickler


def through_getattr(command: str) -> bytes:
    """`getattr` alone reaches everything: from an allowed class to its module's globals."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    init = Payload(getattr, _StorageInfo, "__init__")
    return pickle.dumps(Payload(getattr, Payload(getattr, init, "__globals__"), command))


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (lambda c: pickle.dumps(Payload(os.system, c)), r"names posix\.system"),
        (lambda c: by_name("os", "system", c), r"names os\.system"),
        (lambda c: by_name("builtins", "eval", c), r"names builtins\.eval"),
        (
            lambda c: by_name("torch.distributed.checkpoint.filesystem", "os.system", c),
            r"names .*filesystem\.os\.system",
        ),
        (lambda c: by_name("torch.distributed.checkpoint.filesystem", "os", c), r"names .*filesystem\.os,"),
        (lambda c: by_name("torch.serialization", "os.system", c), r"names torch\.serialization\.os\.system"),
        (lambda c: by_name("collections", "_sys.exit", c), r"names collections\._sys\.exit"),
        (lambda c: by_name("torch", "load", c), r"names torch\.load"),
        (through_getattr, r"takes '__init__' of .*_StorageInfo.*, which is not an enumeration"),
    ],
)
def test_metadata_that_names_code_is_refused_and_does_not_run(attack, named, copy, tmp_path):
    trace = tmp_path / "ran"
    (copy / "weights" / ".metadata").write_bytes(attack(f"touch {trace}"))
    with pytest.raises(CheckpointError, match=rf"\.metadata: {named}"):
        checkpoint.check(copy)
    assert not trace.exists()


def test_the_attack_would_run_if_it_were_loaded(tmp_path):
    """So that the test above can fail."""
    trace = tmp_path / "ran"
    pickle.loads(by_name("torch.distributed.checkpoint.filesystem", "os.system", f"touch {trace}"))
    assert trace.exists()


def test_members_of_enumerations_are_data():
    """Python 3.11.0 to 3.11.3 pickle them as getattr(class, name)."""
    from torch.distributed.checkpoint.planner import WriteItemType

    found = checkpoint._DataOnly(io.BytesIO(pickle.dumps(Payload(getattr, WriteItemType, "SHARD")))).load()
    assert found is WriteItemType.SHARD


def test_objects_beside_the_tensors_run_no_code(copy, inputs, tmp_path):
    """Megatron keeps one object per linear layer; torch's planner asks torch.load to unpickle it in full."""
    trace = tmp_path / "ran"
    evil = io.BytesIO()
    torch.save(Payload(os.system, f"touch {trace}"), evil)
    (copy / "weights" / "evil.distcp").write_bytes(evil.getvalue())
    metadata = pickle.loads((copy / "weights" / ".metadata").read_bytes())
    objects = [index for index in metadata.storage_data if "_extra_state" in index.fqn]
    assert objects
    for index in objects:
        there = replace(
            metadata.storage_data[index], relative_path="evil.distcp", offset=0, length=len(evil.getvalue())
        )
        metadata.storage_data[index] = there
    (copy / "weights" / ".metadata").write_bytes(pickle.dumps(metadata))
    checkpoint.check(copy)
    with pytest.raises(CheckpointError, match="cannot be loaded into this model"):
        load(copy, inputs)
    assert not trace.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_missing_directory(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere: not a finished Megatron checkpoint \(no weights/\.metadata\)"):
        checkpoint.check(tmp_path / "nowhere")


def test_an_unfinished_checkpoint(copy, inputs):
    """Megatron writes .metadata last."""
    (copy / "weights" / ".metadata").unlink()
    for read in (checkpoint.check, lambda directory: load(directory, inputs)):
        with pytest.raises(CheckpointError, match="not a finished Megatron checkpoint"):
            read(copy)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_truncated_metadata(keep, copy):
    file = copy / "weights" / ".metadata"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"\.metadata: damaged"):
        checkpoint.check(copy)


def test_metadata_of_random_bytes(copy):
    (copy / "weights" / ".metadata").write_bytes(bytes(range(256)) * 8)
    with pytest.raises(CheckpointError, match=r"\.metadata: "):
        checkpoint.check(copy)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b""], ids=["half", "empty"])
def test_truncated_weights(damage, copy, inputs):
    file = max((copy / "weights").glob("*.distcp"), key=lambda path: path.stat().st_size)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=f"{copy}: cannot be loaded into this model"):
        load(copy, inputs)


@pytest.mark.parametrize(
    "change",
    [{"ffn_hidden_size": 64}, {"num_layers": 2}, {"num_layers": 5}, {"hidden_size": 32}],
    ids=str,
)
def test_another_model_s_checkpoint(change, good, inputs):
    with pytest.raises(CheckpointError, match="cannot be loaded into this model"):
        load(good, inputs, **change)


def test_a_failed_save_leaves_what_was_there(copy, inputs, monkeypatch):
    """The disk is full at the end: the checkpoint from before stands, nothing lies beside it."""
    from nemo.lightning.io.pl import MegatronCheckpointIO

    save = MegatronCheckpointIO.save_checkpoint

    def full(*args, **kwargs):
        save(*args, **kwargs)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MegatronCheckpointIO, "save_checkpoint", full)
    a = Architecture.from_hf(inputs / "llama")
    before = {path.name: path.read_bytes() for path in (copy / "weights").iterdir()}
    with distributed.model_parallel():
        megatron = model.build(model.gpt_config(a, seq_length=32), a)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(megatron, copy)
    assert {path.name: path.read_bytes() for path in (copy / "weights").iterdir()} == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_megatron_still_spawns_a_manager_for_a_synchronous_save(monkeypatch):
    """Why `in_process_results_queue` is there; when this fails, it can go."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    class Spawned(Exception):
        pass

    def get_context(method):
        raise Spawned(method)

    monkeypatch.setattr(filesystem_async, "_results_queue", None)
    monkeypatch.setattr(filesystem_async.mp, "get_context", get_context)
    with pytest.raises(Spawned, match="spawn"):
        filesystem_async._get_write_results_queue()
    with checkpoint.in_process_results_queue():
        assert filesystem_async._get_write_results_queue().empty()
    assert filesystem_async._results_queue is None  # asynchronous saves run in another process and need Megatron's own


def test_torch_still_unpickles_metadata_and_objects_in_full():
    """Why `check` and `_weights_only` are there; when this fails, they can go."""
    import inspect

    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    assert "pickle.load(" in inspect.getsource(FileSystemReader.read_metadata)
    assert "weights_only=False" in inspect.getsource(DefaultLoadPlanner.load_bytes)
