"""Which models the stage merges and which it refuses; what comes out is tested in tests/chain and tests/engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bielik_nemo import artifacts
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.config_align import MergeModel
from bielik_nemo.errors import CheckpointError, ConfigError, DataError
from bielik_nemo.stages import merge


@pytest.fixture
def run_dir(tiny_hf: Path, tmp_path: Path) -> Path:
    """A run up to its merging whose last model is a Hugging Face directory."""
    (tmp_path / "import_hf").mkdir()
    shutil.copytree(tiny_hf, tmp_path / "import_hf" / "tokenizer")
    shutil.copytree(tiny_hf, tmp_path / "prune" / "hf")
    Architecture.from_hf(tiny_hf).to_json(tmp_path / "prune" / "architecture.json")
    return tmp_path


@pytest.fixture
def other(tiny_hf: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_hf, tmp_path / "other"))


def config(*models: Path, **settings) -> Config:
    made = Config()
    made.pipeline.stages = ["prune", "merge"]
    made.merge.models = [MergeModel(str(path), 3.0) for path in models]
    for name, value in settings.items():
        setattr(made.merge, name, value)
    return made


def test_what_is_left(run_dir: Path, other: Path):
    """Weights 1 and 3 of 4; equal tensors are at no angle."""
    found = merge.run(config(other, method="slerp"), run_dir)
    assert found == {"models": 2, "widest_angle": pytest.approx(0, abs=1e-6)}
    record = json.loads((run_dir / "merge" / "merge.json").read_text())
    digest = artifacts.content_digest(artifacts.digest_files(other, [other / "model.safetensors"]))
    assert record["models"] == [
        {"model": "prune/hf", "weight": 0.25, "digest": digest},
        {"model": str(other), "weight": 0.75, "digest": digest},
    ]
    assert (record["method"], record["dtype"]) == ("slerp", "float32")
    assert record["angles"].keys() >= {"model.norm.weight"}
    left = {path.name for path in (run_dir / "merge").iterdir()}
    assert left == {"hf", "architecture.json", "merge.json"}
    assert (run_dir / "merge" / "architecture.json").read_bytes() == (
        run_dir / "prune" / "architecture.json"
    ).read_bytes()
    assert (run_dir / "merge" / "hf" / "tokenizer.json").is_file()


def test_the_newest_snapshots_share_the_weight_of_the_last_model(tmp_path: Path):
    for step in ("100", "20", "60", "120.partial"):
        (tmp_path / "dpo" / "snapshots" / step).mkdir(parents=True)
    found = merge.own(config(snapshots=2, weight=0.5), tmp_path / "dpo")
    assert [(source.name, source.weight) for source in found] == [
        ("dpo/snapshots/60", 0.25),
        ("dpo/snapshots/100", 0.25),
    ]
    with pytest.raises(ConfigError, match=r"merge\.snapshots: found 4, allowed: 0 to 3, which dpo has left"):
        merge.own(config(snapshots=4), tmp_path / "dpo")
    (source,) = merge.own(config(weight=0.5), tmp_path / "dpo")
    assert (source.name, source.path, source.weight) == ("dpo/megatron", tmp_path / "dpo" / "megatron", 0.5)


def test_another_shape(run_dir: Path, other: Path):
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"rope_theta": 5e5, "intermediate_size": 96}))
    named = r"merge\.models\[0\]\.path: found '.*other' of another shape .*: ffn_hidden_size 96, not 160, rotary_base"
    with pytest.raises(ConfigError, match=named):
        merge.run(config(other), run_dir)
    assert not (run_dir / "merge").exists()
    # How far a model reads does not decide what its weights mean.
    (other / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 4096}))
    merge.run(config(other), run_dir)


def test_another_tokenizer(run_dir: Path, other: Path):
    """Two words have changed places."""
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(DataError, match="other: another tokenizer than the pipeline's model's, 2 words differ"):
        merge.run(config(other), run_dir)
    assert not (run_dir / "merge").exists()


def test_a_megatron_checkpoint_is_known_by_what_lies_around_it(run_dir: Path, other: Path, monkeypatch):
    """A snapshot of another run, whose shape and words stand two directories above."""
    a = Architecture.from_json(run_dir / "prune" / "architecture.json")
    there = other / "dpo" / "snapshots" / "20"
    with pytest.raises(CheckpointError, match="20: not a finished Megatron checkpoint"):
        merge.run(config(there), run_dir)
    monkeypatch.setattr(merge.checkpoint, "check", lambda path: None)
    source, tokenizer = merge.Source("x", there, 1.0), run_dir / "import_hf" / "tokenizer"
    merge.check(source, "key", a, tokenizer)  # nothing is known of it
    there.mkdir(parents=True)
    a.pruned_to(num_layers=2).to_json(other / "dpo" / "architecture.json")
    with pytest.raises(ConfigError, match=r"key: found 'x' of another shape .* num_layers 2, not 4"):
        merge.check(source, "key", a, tokenizer)
