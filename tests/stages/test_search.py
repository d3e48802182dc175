"""The stage on a source of 4 layers, hidden 8, FFN 8, 4 heads of 2 in 2 groups, with scores made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bielik_nemo import ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.artifacts import write_json
from bielik_nemo.config import Config
from bielik_nemo.config_prune import Axis, Search, Target
from bielik_nemo.engine.scores import Scores
from bielik_nemo.errors import CheckpointError, ConfigError
from bielik_nemo.stages import GRAPH, search

SOURCE = Architecture(4, 8, 8, 4, 2, 2, 50, False, max_position_embeddings=4096)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Squared scores: norms 1, 4, 9, ...; FFN 1 but for the first of 49; heads of 2 channels: 9 + 16, 1, 1, 36."""
    SOURCE.to_json(tmp_path / "import_hf" / "architecture.json")
    units = {f"norms.{i}": torch.arange(1.0, 9.0) ** 2 for i in range(8)}
    for i in range(4):
        units[f"decoder.layers.{i}.mlp"] = torch.tensor([49.0] + [1.0] * 7)
        units[f"decoder.layers.{i}.self_attention"] = torch.tensor([9.0, 16, 1, 0, 0, 1, 36, 0])
    (tmp_path / "score").mkdir()
    Scores(torch.tensor([4.0, 1, 2, 1]), units).save(tmp_path / "score" / "scores.safetensors")
    (tmp_path / "search").mkdir()
    return tmp_path


@pytest.fixture
def config() -> Config:
    config = Config()
    config.pipeline.stages = ["import_hf", "data", "score", "search", "prune"]
    fine = Axis(divisor=1, min=1)
    heads = Axis(min=2)
    limits = {"max_parameters": 1500.0, "tolerance": 0.3}
    config.prune.search = Search(fine, fine, Axis(divisor=2, min=2), heads, **limits)
    return config


def test_shares_come_from_the_roots_of_the_squared_scores(run_dir: Path):
    """Layers 4 of 8, 6 of 8. Hidden 8, 7, ... of 36. FFN 7 + 1 of 14. Heads 5, 1 | 1, 6: one of each, 11 of 13."""
    found = search.shares(Scores.load(run_dir / "score" / "scores.safetensors"), SOURCE)
    assert found["num_layers"] == pytest.approx([0, 0.5, 0.75, 0.875, 1])
    assert found["hidden_size"][:3] == pytest.approx([0, 8 / 36, 15 / 36])
    assert found["ffn_hidden_size"][2] == pytest.approx(8 / 14)
    assert found["num_attention_heads"] == pytest.approx([0, 0, 11 / 13, 0, 1])


def test_leaves_candidates_and_the_first_as_target(run_dir: Path, config: Config, monkeypatch: pytest.MonkeyPatch):
    shown = []
    monkeypatch.setattr(ui, "show", shown.append)
    metrics = search.run(config, run_dir)
    found = json.loads((run_dir / "search" / "candidates.json").read_text())
    first = found["candidates"][0]
    target = json.loads((run_dir / "search" / "target.json").read_text())
    assert {axis: first[axis] for axis in target if axis in first} | {"num_query_groups": None} == target
    assert metrics == {"space": 4 * 8 * 4 * 2, "feasible": found["feasible"], "target": first["name"]}
    assert len(found["candidates"]) == min(found["feasible"], search.LISTED)
    assert found["budgets"] == {"max_parameters": 1500.0} and len(shown) == 1
    sizes = [each["parameters"] for each in found["candidates"]]
    assert sizes == sorted(sizes, reverse=True) and 1050 <= sizes[-1] <= sizes[0] <= 1500
    # What was left out is counted whole, and adds up with what was kept.
    assert sum(each["count"] for each in found["rejected"].values()) + found["feasible"] == found["space"]
    assert GRAPH["search"].outputs == ("candidates.json", "target.json")


def test_objective_importance_ranks_by_what_is_retained(run_dir: Path, config: Config):
    search.run(config, run_dir)
    by_size = json.loads((run_dir / "search" / "candidates.json").read_text())["candidates"]
    config.prune.search.objective = "importance"
    search.run(config, run_dir)
    found = json.loads((run_dir / "search" / "candidates.json").read_text())["candidates"]
    retained = [each["retained"] for each in found]
    assert retained == sorted(retained, reverse=True) and found != by_size


def test_fixed_sizes_are_kept_and_two_runs_are_the_same(run_dir: Path, config: Config):
    config.prune.target = Target(num_layers=3)
    config.prune.search.latency_table = str(run_dir / "table.json")
    rows = [
        {"hidden_size": h, "ffn_hidden_size": 8, "num_attention_heads": 4, "milliseconds": h / 8} for h in range(1, 9)
    ]
    base = [{"hidden_size": h, "milliseconds": 1} for h in range(1, 9)]
    write_json(run_dir / "table.json", {"context": 4096, "batch_size": 1, "layers": rows, "base": base})
    config.prune.search.max_parameters, config.prune.search.max_latency_ms = None, 3.0
    texts = []
    for _ in range(2):
        search.run(config, run_dir)
        texts.append((run_dir / "search" / "candidates.json").read_text())
    assert texts[0] == texts[1]
    found = json.loads(texts[0])["candidates"]
    # 1 + 3 * h / 8 within 2.1 and 3: h from 3 to 5.
    assert sorted(each["hidden_size"] for each in found) == [3, 4, 5]
    assert {each["num_layers"] for each in found} == {3}


def test_a_candidate_that_the_layout_cannot_split_is_an_error(run_dir: Path, config: Config):
    config.prune.target = Target(num_layers=3)
    config.parallel.pp = config.cluster.devices_per_node = 2
    with pytest.raises(ConfigError, match=r"parallel\.pp=2: does not divide num_layers=3; .* \(candidate l3-"):
        search.run(config, run_dir)
    assert not list((run_dir / "search").iterdir())


def test_without_scores_there_is_no_search(run_dir: Path, config: Config):
    (run_dir / "score" / "scores.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"scores\.safetensors: missing"):
        search.run(config, run_dir)


def test_prune_cuts_to_what_the_search_chose(run_dir: Path, config: Config):
    from bielik_nemo.engine import cpu

    cpu.enable()
    from bielik_nemo.stages import prune

    search.run(config, run_dir)
    chosen = json.loads((run_dir / "search" / "target.json").read_text())
    found = prune.target_of(config, run_dir, SOURCE)
    assert all(getattr(found, axis) == size for axis, size in chosen.items() if size is not None)
    config.pipeline.stages.remove("search")
    assert prune.target_of(config, run_dir, SOURCE) == SOURCE
