from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from unicodedata import normalize

import pytest

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.config_prune import TextSource
from bielik_nemo.data.text import Document, is_held_out
from bielik_nemo.engine import cpu, datasets
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
        dataset = IndexedDataset(str(run_dir / "data" / {"train": "train/000", "held_out": "held_out/text"}[name]))
        assert [list(tokens) for tokens in dataset] == [[*text.encode(), EOS] for text in texts]
        assert summary[name] == {
            "documents": len(texts),
            "characters": sum(map(len, texts)),
            "tokens": sum(len(text.encode()) + 1 for text in texts),
        }
    assert summary["sources"] == [{"name": "a.jsonl", "language": ""} | summary["train"]]
    assert not list((run_dir / "data").rglob("*partial*"))
    assert [path.name for path in sorted((run_dir / "data" / "held_out").iterdir())] == ["text.bin", "text.idx"]


def test_held_out_text_by_language(run_dir: Path, config: Config, tmp_path: Path):
    """Two sources of one language and one of which none is named: two held-out sets, and a training set and a held-out
    set for each source."""
    for name, texts in (("b", ["b", "bb", "bbb", "bbbb"]), ("c", ["c", "cc", "ccc"])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config.data.sources[0].language = "en-GB"
    config.data.sources += [
        TextSource(path=str(tmp_path / "b.jsonl")),
        TextSource(path=str(tmp_path / "c.jsonl"), language="en-GB"),
    ]
    summary = data.run(config, run_dir)
    texts = {
        "en-GB": [*filter(None, TEXTS), "c", "cc", "ccc"],
        "text": ["b", "bb", "bbb", "bbbb"],
    }
    held_out = {
        language: [text for text in each if is_held_out(Document(text, "", 0), 0.5, config.run.seed)]
        for language, each in texts.items()
    }
    assert all(held_out.values()), "the seed leaves a language without held-out text: take another"
    found = {language: datasets.prefixes(run_dir / "data" / "held_out")[language] for language in texts}
    for language, prefix in found.items():
        documents = [[*text.encode(), EOS] for text in held_out[language]]
        assert [ids.tolist() for ids in datasets.documents(prefix)] == documents
        counts = summary["held_out_by_language"][language]
        assert (counts["documents"], counts["tokens"]) == (len(documents), sum(map(len, documents)))
    for key in ("documents", "characters", "tokens"):
        assert summary["held_out"][key] == sum(each[key] for each in summary["held_out_by_language"].values())
    everything = [[*filter(None, TEXTS)], ["b", "bb", "bbb", "bbbb"], ["c", "cc", "ccc"]]
    for index, texts in enumerate(everything):
        train = [text for text in texts if not any(text in each for each in held_out.values())]
        prefix = run_dir / "data" / "train" / f"00{index}"
        assert [bytes(ids[:-1].tolist()).decode() for ids in datasets.documents(prefix)] == train
        counts = summary["sources"][index]
        assert (counts["documents"], counts["characters"]) == (len(train), len("".join(train)))
        aside = [[*text.encode(), EOS] for text in texts if text not in train]
        prefix = run_dir / "data" / "held_out" / "sources" / f"00{index}"
        assert [ids.tolist() for ids in datasets.documents(prefix)] == aside
    assert sum(row["tokens"] for row in summary["sources"]) == summary["train"]["tokens"]


def test_a_language_without_held_out_text_is_named(run_dir: Path, config: Config, tmp_path: Path):
    seed = config.run.seed
    kept = next(text for text in map(str, range(99)) if not is_held_out(Document(text, "", 0), 0.5, seed))
    (tmp_path / "b.txt").write_text(kept)
    config.data.sources.append(TextSource(path=str(tmp_path / "b.txt"), language="pl"))
    with pytest.raises(DataError, match=r"held_out_fraction=0\.5: no document in language pl falls on the held_out"):
        data.run(config, run_dir)


def test_a_source_of_which_all_is_held_out_is_named(run_dir: Path, config: Config, tmp_path: Path):
    seed = config.run.seed
    text = next(text for text in map(str, range(99)) if is_held_out(Document(text, "", 0), 0.5, seed))
    (tmp_path / "b.txt").write_text(text)
    config.data.sources.append(TextSource(path=str(tmp_path / "b.txt")))
    with pytest.raises(DataError, match=r"no document of data\.sources\[1\] falls on the train side"):
        data.run(config, run_dir)
    assert not list((run_dir / "data").rglob("*.idx"))


def test_copies_that_differ_in_form_are_on_one_side(run_dir: Path, config: Config, tmp_path: Path):
    """Of 60 texts each has three copies: in capitals, with other white space, and with composed letters taken apart
    (NFD). Nothing of what is held out is in the training set in any form."""
    texts = [f"Zażółć gęślą jaźń, {number} razy." for number in range(60)]
    copies = (str, str.upper, lambda text: text.replace(" ", "\n\u00a0 "), lambda text: normalize("NFD", text))
    path = tmp_path / "copies.jsonl"
    path.write_text("".join(json.dumps({"text": copy(text)}) + "\n" for copy in copies for text in texts))
    config.data.sources = [TextSource(path=str(path))]
    data.run(config, run_dir)

    def written(name: str) -> list[str]:
        return [bytes(ids[:-1].tolist()).decode() for ids in datasets.documents(run_dir / "data" / name)]

    sides = [Counter(int(re.search(r"\d+", text)[0]) for text in written(n)) for n in ("train/000", "held_out/text")]
    assert all(set(side.values()) == {4} for side in sides) and not sides[0].keys() & sides[1].keys()
    assert set(written("train/000")) < {copy(text) for copy in copies for text in texts}  # as they were


def test_no_document_on_one_side(run_dir: Path, config: Config):
    config.data.held_out_fraction = 0.0
    with pytest.raises(DataError, match=r"data\.held_out_fraction=0\.0: no document falls on the held_out side"):
        data.run(config, run_dir)


def test_a_tokenizer_of_a_larger_model(run_dir: Path, config: Config):
    path = run_dir / "import_hf" / "architecture.json"
    path.write_text(path.read_text().replace("263", "256"))
    with pytest.raises(DataError, match="up to 262, the model's vocabulary has 256"):
        data.run(config, run_dir)
