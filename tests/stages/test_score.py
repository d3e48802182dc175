"""Scores of another run are taken over when they are what this one would measure, and refused by name otherwise."""

from __future__ import annotations

import pytest
import torch

from bielik_nemo.config import Config
from bielik_nemo.config_prune import Importance
from bielik_nemo.engine.scores import Scores, key
from bielik_nemo.errors import CheckpointError, GateError
from bielik_nemo.stages import score

TOKENS = torch.arange(8).view(2, 4)


@pytest.fixture
def path(tmp_path) -> str:
    """Scores that a run with the default settings left."""
    found = Scores(torch.ones(2, dtype=torch.float64), {"norms.0": torch.ones(3)}, {}, key("abc", TOKENS, Importance()))
    found.save(tmp_path / "scores.safetensors")
    return str(tmp_path / "scores.safetensors")


def test_the_same_are_taken_over(path):
    """Targets are not part of what scores belong to."""
    found = score._given(path, key("abc", TOKENS, Importance(scores=path)))
    assert torch.equal(found.layers, torch.ones(2, dtype=torch.float64))


def test_others_are_refused_with_key_and_file(path):
    with pytest.raises(CheckpointError) as caught:
        score._given(path, key("def", TOKENS, Importance()))
    assert str(caught.value) == f"prune.importance.scores: {path}: scores are stale: model: found abc, expected def"


def test_a_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=f"{tmp_path}/none: missing, damaged or not a score file"):
        score._given(f"{tmp_path}/none", {})


@pytest.mark.parametrize(("loss", "passes"), [(4.0, True), (4.001, False), (float("nan"), False)])
def test_a_source_that_predicts_nothing_is_not_scored(loss, passes, monkeypatch, tmp_path):
    """distill.gate_max_loss is 4 by default."""
    monkeypatch.setattr(score.HeldOut, "batches", lambda self: 1)
    monkeypatch.setattr(score.HeldOut, "loss", lambda self, model, on_batch: loss)
    if passes:
        assert score._source_loss(Config(), None, tmp_path) == loss
    else:
        with pytest.raises(GateError, match=f"held-out loss {loss:.3f} nats per token, .*gate_max_loss=4.0"):
            score._source_loss(Config(), None, tmp_path)
