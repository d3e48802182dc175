"""Preference pairs -> datasets of marked tokens; see test_chat.py for the tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.config_align import PreferenceSource
from bielik_nemo.data.text import Document, is_held_out
from bielik_nemo.engine import cpu
from bielik_nemo.errors import DataError

cpu.enable()

from bielik_nemo.engine.labelled import Conversations  # noqa: E402
from bielik_nemo.stages import preferences  # noqa: E402

S, START, END = 256, 259, 260


@pytest.fixture
def run_dir(tiny_hf: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_hf, tmp_path / "run" / "import_hf" / "tokenizer")
    (tmp_path / "run" / "preferences").mkdir()
    Architecture.from_hf(tiny_hf).to_json(tmp_path / "run" / "import_hf" / "architecture.json")
    return tmp_path / "run"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made = Config()
    made.dpo.sources = [PreferenceSource(path=str(tmp_path / "a.jsonl"), language="pl")]
    made.chat.held_out_fraction = 0.5
    return made


def document(prompt: str, answer: str) -> tuple[list[int], list[bool]]:
    asked = [S, START, *f"user\n{prompt}".encode(), END, *b"\n", START, *b"assistant\n"]
    answered = [*answer.encode(), END, *b"\n"]
    return asked + answered, [False] * len(asked) + [True] * len(answered)


def test_chosen_and_rejected_alternate(run_dir: Path, config: Config, tmp_path: Path):
    """Two pairs for each prompt, the second with the prompt in capitals: both on the same side."""
    prompts = [f"Napisz {number}" for number in range(8)]
    pairs = [(prompt, f"dobrze {prompt}", "źle") for each in prompts for prompt in (each, each.upper())]
    keys = ("prompt", "chosen", "rejected")
    rows = [json.dumps(dict(zip(keys, pair, strict=True))) for pair in pairs]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    summary = preferences.run(config, run_dir)
    here = run_dir / "preferences"
    assert summary == json.loads((here / "summary.json").read_text())
    for side in ("train", "held_out"):
        mine = [
            pair
            for pair in pairs
            if is_held_out(Document(pair[0], "", 0), 0.5, config.run.seed) == (side == "held_out")
        ]
        assert mine and len(mine) % 2 == 0
        documents = [document(prompt, answer) for prompt, *answers in mine for answer in answers]
        found = [(each.ids.tolist(), each.trained.tolist()) for each in Conversations(here / side / "00000")]
        assert found == documents
        assert summary[side] == {
            "pairs": len(mine),
            "tokens": sum(len(ids) for ids, _ in documents),
            "trained_tokens": sum(sum(marks) for _, marks in documents),
        }
        assert sorted(path.name for path in (here / side).iterdir()) == ["00000.bin", "00000.idx"]
    assert summary["sources"] == [{"name": "a.jsonl", "language": "pl"} | summary["train"] | {"skipped": 0}]


def test_bad_pairs_stop_the_stage(run_dir: Path, config: Config, tmp_path: Path):
    row = json.dumps({"prompt": "a", "chosen": "same", "rejected": "same"})
    (tmp_path / "a.jsonl").write_text(row)
    with pytest.raises(DataError, match=r"dpo\.sources\[0\]\.path=.*1 of 1 lines .* chosen and rejected are the same"):
        preferences.run(config, run_dir)
    assert "same" in json.loads((run_dir / "preferences" / "skipped.jsonl").read_text())["why"]
