"""What the stage makes of its settings, of pairs and of references; tests/engine/test_preference.py trains on them."""

from __future__ import annotations

from pathlib import Path

import fiddle as fdl
import pytest

from bielik_nemo.artifacts import Manifest, write_json
from bielik_nemo.config import Config
from bielik_nemo.engine import labelled
from bielik_nemo.engine.guard import Guard
from bielik_nemo.engine.preference import ReferenceGate
from bielik_nemo.engine.preference_data import plan
from bielik_nemo.errors import ConfigError, DataError
from bielik_nemo.stages import dpo, reference
from bielik_nemo.stages.nodes import known


def finish(directory: Path, fingerprint: str, outputs: dict[str, str]) -> None:
    """A manifest of some stage, with the digests of what it left."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {name: {"sha256": digest} for name, digest in outputs.items()}
    Manifest(directory.name, fingerprint, {}, {}, {}, files, {}, "", 0.0).write(directory)


@pytest.fixture
def config() -> Config:
    """Four pairs a step in sequences of 12."""
    config = Config()
    config.pipeline.stages = ["import_hf", "sft", "preferences", "reference", "dpo"]
    config.dpo.seq_length, config.dpo.global_batch_size, config.dpo.warmup_steps = 12, 4, 1
    return config


@pytest.fixture
def run_dir(tmp_path: Path, config: Config) -> Path:
    """Ten pairs of 3 + 3 predictions for training; held out are some of the second source alone. References fit."""
    for part, name, count in (("train", "00000", 6), ("train", "00001", 4), ("held_out", "00001", 2)):
        directory = tmp_path / "preferences" / part
        directory.mkdir(parents=True, exist_ok=True)
        with labelled.writer(directory / name, 263) as add:
            for _ in range(2 * count):
                add([1, 2, 3, 4], [False, False, True, True])
    sources = [{"name": "a.jsonl", "language": "pl"}, {"name": "b.jsonl", "language": "en"}]
    write_json(tmp_path / "preferences" / "summary.json", {"sources": sources})
    finish(tmp_path / "sft", "abc", {})
    finish(tmp_path / "preferences", "def", {"train/00000.bin": "1", "held_out/00001.bin": "2", "summary.json": "3"})
    shape = {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4}
    shape |= {"num_query_groups": 2, "head_dim": 8, "vocab_size": 263, "tie_embeddings": False}
    write_json(tmp_path / "sft" / "architecture.json", shape)
    (tmp_path / "reference").mkdir()
    write_json(tmp_path / "reference" / "reference.json", reference.origin(config, tmp_path))
    return tmp_path


def test_epochs_are_steps_of_so_many_pairs(run_dir: Path, config: Config):
    """Ten pairs, four a step, 2.5 epochs: 25 / 4 steps; two pairs in a sequence, two sequences a step.

    With micro-batches of 3 there are three, the third of them empty: 24 of 36 positions hold a token.
    """
    config.dpo.epochs = 2.5
    found, work = plan(**dpo.drawn(config, run_dir)), dpo.build(config, run_dir)
    data = work.data
    assert [known(each) for each in (work.trainer.max_steps, data.global_batch_size, data.seq_length)] == [7, 2, 12]
    assert (work.optim.config.lr, found.places, found.filled) == (5e-7, 2, 1.0)
    config.dpo.micro_batch_size, config.dpo.max_steps = 3, 5
    found = plan(**dpo.drawn(config, run_dir))
    assert (found.steps, found.sequences, found.filled) == (5, 3, pytest.approx(24 / 36))


def test_all_steps_would_be_warm_up(run_dir: Path, config: Config):
    config.dpo.epochs, config.dpo.warmup_steps = 1, 3
    with pytest.raises(ConfigError, match=r"dpo.warmup_steps: found 3, allowed: less than the 3 steps of dpo"):
        known(dpo.build(config, run_dir).trainer.max_steps)


def test_the_task(run_dir: Path, config: Config):
    """Of the first source nothing is held out; the gate is there, and what is learned makes no spike."""
    work = dpo.build(config, run_dir)
    measured = next(each.held_out for each in work.trainer.callbacks if hasattr(each, "held_out"))
    assert (known(measured.sources), known(measured.languages)) == (["b.jsonl"], ["en"])
    kinds = {fdl.get_callable(each): each for each in work.trainer.callbacks}
    assert kinds[ReferenceGate].tolerance == 0.02
    assert kinds[Guard].floor == pytest.approx(0.6931, abs=1e-4)
    assert known(work.data.global_batch_size) == work.data.dataset.batch // 2 == 2


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model", lambda run_dir, config: finish(run_dir / "sft", "other", {})),
        ("data", lambda run_dir, config: finish(run_dir / "preferences", "def", {"train/00000.bin": "9"})),
        ("seq_length", lambda run_dir, config: setattr(config.dpo, "seq_length", 16)),
        ("dtype", lambda run_dir, config: setattr(config.trainer, "precision", "bf16-mixed")),
    ],
)
def test_references_of_something_else_are_refused(name: str, change, run_dir: Path, config: Config):
    reference.check(config, run_dir)
    change(run_dir, config)
    with pytest.raises(DataError, match=rf"reference\.json: {name}: found .*, allowed: .*, of this run; run"):
        dpo.run(config, run_dir)


def test_there_are_no_references(run_dir: Path, config: Config):
    (run_dir / "reference" / "reference.json").unlink()
    with pytest.raises(DataError, match=r"reference\.json: No such file"):
        dpo.run(config, run_dir)
