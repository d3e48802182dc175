from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bielik_nemo.engine import best, checkpoint


def test_nothing_is_kept_before_the_first(tmp_path: Path):
    (tmp_path / "step=4,held_out_loss=1.0.partial").mkdir()  # half written by one that was killed
    (tmp_path / "step=5").mkdir()
    assert best.find(tmp_path) is None
    assert best.find(tmp_path / "none") is None


def test_the_lowest_is_found_with_every_digit(tmp_path: Path):
    """Also where a kill left the one before."""
    for name in ("step=3,held_out_loss=2.5000000000000004", "step=6,held_out_loss=2.5", "step=9,held_out_loss=10.25"):
        (tmp_path / name).mkdir()
    assert best.find(tmp_path) == (2.5, 6, tmp_path / "step=6,held_out_loss=2.5")


def test_only_a_lower_loss_replaces_what_is_kept(llama, tmp_path: Path):
    megatron, _ = llama
    weight = megatron.decoder.final_layernorm.weight
    for step, loss in ((3, 2.5), (6, 2.7), (9, 2.5), (12, float("nan"))):
        with torch.no_grad():
            weight.fill_(step)
        best.keep(megatron, tmp_path / "best", step, loss)
        assert [path.name for path in (tmp_path / "best").iterdir()] == ["step=3,held_out_loss=2.5"]
    with torch.no_grad():
        weight.fill_(15)
    best.keep(megatron, tmp_path / "best", 15, 1.25)
    found = best.find(tmp_path / "best")
    assert found is not None and (found.loss, found.step) == (1.25, 15)
    assert list((tmp_path / "best").iterdir()) == [found.path]
    assert best.leave(megatron, tmp_path) == found
    with torch.no_grad():
        weight.zero_()
    checkpoint.load(megatron, tmp_path / "megatron")
    assert weight.unique().tolist() == [15.0]
    assert found.path.is_dir()
    (tmp_path / "other").mkdir()
    with torch.no_grad():
        weight.fill_(7)
    assert best.leave(megatron, tmp_path / "other") is None
    checkpoint.load(megatron, tmp_path / "other" / "megatron")
    assert weight.unique().tolist() == [7.0]


@pytest.mark.parametrize("loss", [1e-05, 0.1 + 0.2, 12.0])
def test_a_loss_is_read_as_it_was_written(loss: float, tmp_path: Path):
    (tmp_path / f"step=1,held_out_loss={loss!r}").mkdir()
    assert best.find(tmp_path).loss == loss
