from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config, TextSource
from bielik_nemo.data.text import Document, is_held_out
from bielik_nemo.engine import cpu
from bielik_nemo.errors import DataError

cpu.enable()

from bielik_nemo.stages import data  # noqa: E402

EOS = 260
TEXTS = ["ala ma kota", "żółw", "", "a\nb", "kot ma alę"]


@pytest.fixture
def run_dir(tiny_hf: Path, tmp_path: Path) -> Path:
    """A run directory after the import of the tiny model, whose tokens are bytes."""
    shutil.copytree(tiny_hf, tmp_path / "run" / "import_hf" / "tokenizer")
    (tmp_path / "run" / "data").mkdir()
    Architecture.from_hf(tiny_hf).to_json(tmp_path / "run" / "import_hf" / "architecture.json")
    return tmp_path / "run"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    made = Config()
    made.data.sources = [TextSource(path=str(tmp_path / "a.jsonl"))]
    made.data.held_out_fraction = 0.5
    return made


def sides(seed: int) -> dict[str, list[str]]:
    """Texts by side; the blank one is on neither."""
    found: dict[str, list[str]] = {"train": [], "held_out": []}
    for text in filter(None, TEXTS):
        found["held_out" if is_held_out(Document(text, "", 0), 0.5, seed) else "train"].append(text)
    return found


def test_every_document_is_its_bytes_and_an_end_on_one_side(run_dir: Path, config: Config):
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    expected = sides(config.run.seed)
    assert all(expected.values()), "the seed puts all texts on one side: take another"
    summary = data.run(config, run_dir)
    assert summary == json.loads((run_dir / "data" / "summary.json").read_text())
    for name, texts in expected.items():
        dataset = IndexedDataset(str(run_dir / "data" / name))
        assert [list(tokens) for tokens in dataset] == [[*text.encode(), EOS] for text in texts]
        assert summary[name] == {
            "documents": len(texts),
            "characters": sum(map(len, texts)),
            "tokens": sum(len(text.encode()) + 1 for text in texts),
        }
    assert not list((run_dir / "data").glob("*partial*"))


def test_no_document_on_one_side(run_dir: Path, config: Config):
    config.data.held_out_fraction = 0.0
    with pytest.raises(DataError, match=r"data\.held_out_fraction=0\.0: no document falls on the held_out side"):
        data.run(config, run_dir)


def test_a_tokenizer_of_a_larger_model(run_dir: Path, config: Config):
    path = run_dir / "import_hf" / "architecture.json"
    path.write_text(path.read_text().replace("263", "256"))
    with pytest.raises(DataError, match="up to 262, the model's vocabulary has 256"):
        data.run(config, run_dir)
