"""What the stage writes down of a cut; the cut itself is tested in tests/engine and tests/chain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.engine.scores import Scores
from bielik_nemo.errors import ConfigError
from bielik_nemo.prune.kept import Kept
from bielik_nemo.stages import prune

# Two layers, four channels of hidden stream and FFN, one head of 2 in one group.
SOURCE = Architecture(2, 4, 4, 1, 1, 2, 16, tie_embeddings=False)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run up to its scores, which like channels 3, 1, 2, 0 of hidden stream and FFN, in this order."""
    for name in ("import_hf", "score", "prune"):
        (tmp_path / name).mkdir()
    SOURCE.to_json(tmp_path / "import_hf" / "architecture.json")
    channels = torch.tensor([1.0, 9.0, 4.0, 16.0])
    units = {f"norms.{i}": channels.clone() for i in range(4)}
    units |= {f"decoder.layers.{i}.mlp": channels.clone() for i in range(2)}
    units |= {f"decoder.layers.{i}.self_attention": torch.ones(2) for i in range(2)}
    Scores(torch.ones(2, dtype=torch.float64), units).save(tmp_path / "score" / "scores.safetensors")
    return tmp_path


@pytest.mark.parametrize("rotation, hidden", [(False, [3, 1]), (True, [])])
def test_no_channel_stays_of_a_rotated_stream(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, rotation: bool, hidden: list[int]
):
    """Its first two principal axes stay; who repeated a cut to channels 3 and 1 would get another model."""
    monkeypatch.setattr(prune, "cut", lambda *_: {})
    config = Config()
    config.prune.target.hidden_size, config.prune.target.ffn_hidden_size = 2, 3
    config.prune.compensation.rotation = rotation
    prune.run(config, run_dir)
    kept = Kept.from_json(run_dir / "prune" / "kept.json")
    assert kept == Kept([0, 1], hidden, {0: [3, 1, 2], 1: [3, 1, 2]}, {0: [0], 1: [0]})


def test_a_rotation_without_a_cut_of_the_stream_does_nothing(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prune, "cut", lambda *_: {})
    config = Config()
    config.prune.target.ffn_hidden_size, config.prune.compensation.rotation = 3, True
    prune.run(config, run_dir)
    assert Kept.from_json(run_dir / "prune" / "kept.json").hidden == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "pp, blocks, kept, named",
    [
        # Eight layers on two stages, 0 to 3 and 4 to 7.
        (2, False, [0, 1, 2, 3], "parallel.pp: found 2, .* layers 4 to 7 are all dropped"),
        (4, False, [0, 1, 2, 3, 6], "parallel.pp: found 4, .* layers 4 to 5 are all dropped"),
        (2, True, [0, 1, 2, 3, 5], "prune.compensation.blocks: .* as layer 4 does"),
    ],
)
def test_cuts_that_pipeline_stages_cannot_do(pp: int, blocks: bool, kept: list[int], named: str):
    config = Config()
    config.parallel.pp, config.prune.compensation.blocks = pp, blocks
    with pytest.raises(ConfigError, match=named):
        prune._check_stages(config, 8, kept)


@pytest.mark.parametrize(
    "pp, blocks, kept", [(1, True, [0, 7]), (2, True, [1, 2, 4]), (2, False, [0, 5]), (4, False, [0, 2, 5, 6])]
)
def test_cuts_that_they_can(pp: int, blocks: bool, kept: list[int]):
    """A model may begin in a gap, and without `blocks` every stage may."""
    config = Config()
    config.parallel.pp, config.prune.compensation.blocks = pp, blocks
    prune._check_stages(config, 8, kept)
