"""The score file: what is written is read, and scores of something else are refused by name."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from bielik_nemo.config_prune import Importance
from bielik_nemo.engine.scores import Scores, key
from bielik_nemo.errors import CheckpointError

TOKENS = torch.arange(12).view(3, 4)


def scores(**changes) -> Scores:
    parts = {
        "layers": torch.tensor([0.3, 0.1, 0.2], dtype=torch.float64),
        "units": {"norms.0": torch.rand(4), "decoder.layers.0.mlp": torch.rand(6, dtype=torch.float64)},
        "blocks": {2: torch.rand(2, dtype=torch.float64), 1: torch.rand(3, dtype=torch.float64)},
        "key": key("abc", TOKENS, Importance()),
    }
    return Scores(**parts | changes)


def test_scores_survive_a_file(tmp_path):
    before = scores()
    before.save(tmp_path / "scores.safetensors")
    after = Scores.load(tmp_path / "scores.safetensors")
    assert after.layers.dtype == torch.float64 and torch.equal(after.layers, before.layers)
    assert after.key == before.key
    for found, expected in (after.units, before.units), (after.blocks, before.blocks):
        assert found.keys() == expected.keys()
        assert all(found[name].dtype == expected[name].dtype for name in expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_file_is_the_same_byte_for_byte(tmp_path):
    """Later stages go by its digest, and a run that takes it over writes it again."""
    scores().save(tmp_path / "first")
    again = Scores.load(tmp_path / "first")
    for i in range(8):  # entries of the metadata would come in any order
        again.save(tmp_path / str(i))
        assert (tmp_path / str(i)).read_bytes() == (tmp_path / "first").read_bytes()


def test_a_file_without_blocks_and_key(tmp_path):
    save_file({"layers": torch.ones(2), "norms.0": torch.ones(3)}, tmp_path / "old")
    found = Scores.load(tmp_path / "old")
    assert (found.blocks, found.key, list(found.units)) == ({}, {}, ["norms.0"])


@pytest.mark.parametrize("content", [None, b"", b"x" * 100, "no layers", "blocks.many"])
def test_a_score_file_that_is_none(content, tmp_path):
    path = tmp_path / "scores.safetensors"
    if content == "no layers":
        save_file({"norms.0": torch.ones(2)}, path)
    elif content == "blocks.many":
        save_file({"layers": torch.ones(2), "blocks.many": torch.ones(2)}, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path}: missing, damaged or not a score file"):
        Scores.load(path)


def test_scores_of_the_same_pass():
    scores().check(key("abc", TOKENS.to(torch.int32), Importance(scores="elsewhere")))


@pytest.mark.parametrize(
    ("model", "tokens", "settings", "named"),
    [
        ("def", TOKENS, {}, "model: found abc, expected def"),
        ("abc", TOKENS + 1, {}, "calibration: found 3x4:.*, expected 3x4:"),
        ("abc", TOKENS.view(4, 3), {}, "calibration: found 3x4:.*, expected 4x3:"),
        ("abc", TOKENS, {"seq_aggregation": "var"}, "settings: found .*seq_aggregation=mean.* expected .*=var"),
        ("abc", TOKENS, {"batch_aggregation": "mean"}, "settings: found batch_aggregation=l2.* expected .*=mean"),
        (
            "abc",
            TOKENS,
            {"layers": "loss_increase"},
            "settings: found .*layers=block_influence.* expected .*layers=loss_increase",
        ),
        ("abc", TOKENS, {"layer_samples": 8}, "settings: found .*layer_samples=64.* expected .*layer_samples=8"),
        ("abc", TOKENS, {"block_sizes": [2]}, r"settings: found .*block_sizes=\[\], expected .*block_sizes=\[2\]"),
    ],
)
def test_stale_scores_are_refused(model, tokens, settings, named):
    with pytest.raises(CheckpointError, match=f"scores are stale: {named}") as caught:
        scores().check(key(model, tokens, Importance(**settings)))
    assert str(caught.value).count(": found") == 1  # what agrees is not named


def test_everything_stale_is_named():
    with pytest.raises(CheckpointError, match=r"model: found none.*; calibration: found none.*; settings: found none"):
        scores(key={}).check(key("abc", TOKENS, Importance()))


def test_the_order_of_block_sizes_does_not_matter():
    assert key("a", TOKENS, Importance(block_sizes=[4, 2, 4])) == key("a", TOKENS, Importance(block_sizes=[2, 4]))
