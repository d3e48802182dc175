"""What the stage makes of its settings and of what the stage chat left; tests/engine/test_sft.py trains it."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from bielik_nemo.artifacts import write_json
from bielik_nemo.config import Config
from bielik_nemo.engine import labelled
from bielik_nemo.errors import ConfigError
from bielik_nemo.stages import fit, sft
from bielik_nemo.stages.nodes import known


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Twelve conversations of four predictions for training; held out are some of the second source alone."""
    for part, name, count in (("train", "00000", 8), ("train", "00001", 4), ("held_out", "00001", 2)):
        directory = tmp_path / "chat" / part
        directory.mkdir(parents=True, exist_ok=True)
        with labelled.writer(directory / name, 263) as add:
            for number in range(count):
                add([number + 1] * 5, [False, True, True, True, True])
    for part, counts in (("train", {"00000": 8, "00001": 4}), ("held_out", {"00001": 2})):
        weights = {name: np.full(count, 100, np.uint8) for name, count in counts.items()}
        save_file(weights, tmp_path / "chat" / part / "weights.safetensors")
    sources = [{"name": "a.jsonl", "language": "pl"}, {"name": "b.jsonl", "language": "en"}]
    write_json(tmp_path / "chat" / "summary.json", {"sources": sources})
    return tmp_path


@pytest.fixture
def config() -> Config:
    config = Config()
    config.sft.seq_length, config.sft.global_batch_size, config.sft.warmup_steps = 8, 2, 1
    return config


def test_epochs_are_steps_of_packed_sequences(run_dir: Path, config: Config):
    """Two conversations of four in a sequence of eight: six sequences, three steps an epoch; 2.5 epochs are 7.5."""
    config.sft.epochs = 2.5
    paced = sft.settings(config, run_dir)
    assert (known(paced.trainer.max_steps), paced.data.global_batch_size, paced.data.seq_length) == (8, 2, 8)
    assert (paced.optim.schedule, paced.optim.lr, paced.optim.weight_decay) == ("constant", 5e-6, 0.05)
    config.sft.packing = False
    assert known(sft.settings(config, run_dir).trainer.max_steps) == 15  # twelve sequences: six steps an epoch
    config.sft.max_steps = 4
    assert sft.settings(config, run_dir).trainer.max_steps == 4


def test_all_steps_would_be_warm_up(run_dir: Path, config: Config):
    config.sft.epochs, config.sft.warmup_steps = 1, 3
    message = r"sft.warmup_steps: found 3, allowed: less than the 3 steps of sft"
    with pytest.raises(ConfigError, match=message):
        known(sft.settings(config, run_dir).trainer.max_steps)
    config.sft.max_steps = 3  # at once: no data need be there
    with pytest.raises(ConfigError, match=message):
        sft.settings(config, run_dir / "nowhere")


def test_held_out_sources_have_their_own_names(run_dir: Path, config: Config):
    """Of the first nothing is held out, so that the first dataset is the second source's."""
    found = sft.held_out(config, run_dir)
    assert (known(found.sources), known(found.languages)) == (["b.jsonl"], ["en"])


def test_a_changed_task_may_take_fewer_steps():
    """There are samples for as many as are planned."""

    def work(steps: int) -> fit.Work:
        return functools.partial(print, trainer=SimpleNamespace(max_steps=steps))

    assert (fit.steps(None, "sft", 8), fit.steps(work(3), "sft", 8)) == (8, 3)
    with pytest.raises(ConfigError, match=r"task\.trainer\.max_steps: found 9, allowed: at most 8, .* sft\.max_steps"):
        fit.steps(work(9), "sft", 8)
