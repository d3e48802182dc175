"""A process without a launcher meets itself, lays out its groups, and leaves no trace; directories appear whole."""

from __future__ import annotations

import os

import pytest
import torch

from bielik_nemo.engine import distributed

VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


def test_a_layout_leaves_no_trace(monkeypatch):
    """So that a second one in the same process, and torchrun below it, start clean."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    from bielik_nemo.engine import cpu

    cpu.enable()
    from megatron.core import parallel_state

    for _ in range(2):
        with distributed.model_parallel():
            assert (distributed.rank(), distributed.world_size()) == (0, 1)
            assert parallel_state.get_tensor_model_parallel_world_size() == 1
            assert torch.distributed.is_initialized()
        assert not torch.distributed.is_initialized()
        assert not parallel_state.model_parallel_is_initialized()
        assert not any(name in os.environ for name in VARIABLES)


def test_a_block_that_fails_is_cleaned_up_too(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ZeroDivisionError), distributed.model_parallel():
        raise ZeroDivisionError
    assert not torch.distributed.is_initialized()
    assert "MASTER_ADDR" not in os.environ


def test_a_launcher_s_rendezvous_is_kept(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "somewhere")
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    distributed.ensure_rendezvous()
    assert os.environ["MASTER_ADDR"] == "somewhere"
    assert (distributed.rank(), distributed.world_size()) == (3, 8)


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2), (2, 2)])
def test_too_few_processes(tp, pp):
    with (
        pytest.raises(ValueError, match=rf"1 processes cannot hold parallel.tp={tp} x parallel.pp={pp}"),
        distributed.model_parallel(tp, pp),
    ):
        pass


def test_the_seed_decides_random_weights(inputs):
    from bielik_nemo.architecture import Architecture
    from bielik_nemo.engine import model

    a = Architecture.from_hf(inputs / "llama")
    drawn = []
    for seed in (1, 1, 2):
        with distributed.model_parallel(seed=seed):
            drawn.append(model.build(model.gpt_config(a, seq_length=32), a).output_layer.weight.detach().clone())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_directory_appears_whole(tmp_path):
    target = tmp_path / "deep" / "target"
    with distributed.whole_directory(target) as partial:
        (partial / "a").write_text("new")
        assert not target.exists()
    assert (target / "a").read_text() == "new"
    with distributed.whole_directory(target) as partial:
        (partial / "b").write_text("newer")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_directory_that_fails_leaves_what_was_there(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "a").write_text("old")
    with pytest.raises(OSError, match="full"), distributed.whole_directory(target) as partial:
        (partial / "b").write_text("half")
        raise OSError("full")
    assert [path.name for path in target.iterdir()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_what_a_killed_writer_left_is_swept_away(tmp_path):
    (tmp_path / "target.partial").mkdir()
    (tmp_path / "target.partial" / "stale").write_text("")
    with distributed.whole_directory(tmp_path / "target") as partial:
        assert list(partial.iterdir()) == []
