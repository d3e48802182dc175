"""The calibration set: the right tokens in the right shares, none of them held out, and never fewer than wanted.

The tokenizer's tokens are bytes (`a` is 97), 260 ends a text.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.config_prune import BlendSource, TextSource
from bielik_nemo.data.text import Document, is_held_out
from bielik_nemo.engine import calibration, datasets
from bielik_nemo.errors import DataError

EOS = 260
POLISH = os.environ.get("BIELIK_NEMO_POLISH_TEXTS", "")  # a directory of Polish books


@pytest.fixture
def run_dir(tiny_hf: Path, tmp_path: Path) -> Path:
    """A run directory after the stage `data`: a training text of 12 + 9 tokens."""
    (tmp_path / "import_hf").mkdir()
    (tmp_path / "import_hf" / "tokenizer").symlink_to(tiny_hf)
    Architecture.from_hf(tiny_hf).to_json(tmp_path / "import_hf" / "architecture.json")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").mkdir()
    datasets.write(tmp_path / "data" / "train" / "000", [list(range(12)), list(range(12, 21))], 263)
    datasets.write(tmp_path / "data" / "train" / "001", [[200 + i for i in range(10)]], 263)
    summary = {"sources": [{"name": "a.txt", "tokens": 21}]}
    (tmp_path / "data" / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "score").mkdir()
    return tmp_path


def config(samples: int, seq_length: int, *sources: BlendSource) -> Config:
    made = Config()
    made.data.held_out_fraction, made.data.sources = 0.0, [TextSource()]
    made.prune.calibration.samples, made.prune.calibration.seq_length = samples, seq_length
    made.prune.calibration.sources = list(sources)
    return made


def lines(path: Path, *texts: str, key: str = "text") -> str:
    path.write_text("".join(json.dumps({key: text}) + "\n" for text in texts))
    return str(path)


def test_without_sources_it_is_the_training_text_from_its_beginning(run_dir: Path):
    """Four of the five whole samples of 4; token 16 is the first of the fifth."""
    tokens, record = calibration.prepare(config(4, 4), run_dir)
    assert tokens.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert tokens.dtype == torch.int64
    assert record == {
        "samples": 4,
        "tokens": 16,
        "sources": [
            {
                "path": "a.txt",
                "language": "",
                "weight": 1.0,
                "share": 1.0,
                "samples": 4,
                "tokens": 16,
                "documents": 2,
                "held_out_documents": 0,
            }
        ],
        "languages": {"text": {"samples": 4, "tokens": 16}},
    }


def test_training_texts_are_blended_as_in_training(run_dir: Path):
    """Of five samples at 3:2 three are of the first text and two of the second, each from its beginning."""
    rows = [{"name": "a.txt", "tokens": 21}, {"name": "b.txt", "tokens": 10}]
    (run_dir / "data" / "summary.json").write_text(json.dumps({"sources": rows}))
    made = config(5, 4)
    made.data.sources = [TextSource(language="pl", weight=3), TextSource(language="en", weight=2)]
    tokens, record = calibration.prepare(made, run_dir)
    first, second = ([row for row in tokens.tolist() if (row[0] < 200) is early] for early in (True, False))
    assert first == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert second == [[200, 201, 202, 203], [204, 205, 206, 207]]
    assert record["languages"] == {"pl": {"samples": 3, "tokens": 12}, "en": {"samples": 2, "tokens": 8}}


def test_too_short_a_training_text(run_dir: Path):
    """21 tokens are five samples of 4."""
    assert calibration.prepare(config(5, 4), run_dir)[0].shape == (5, 4)
    with pytest.raises(DataError) as caught:
        calibration.prepare(config(6, 4), run_dir)
    assert str(caught.value) == (
        "prune.calibration.samples: found 21 tokens in 2 documents of the training text a.txt: 5 samples of "
        "prune.calibration.seq_length=4, wanted 6; give more text, fewer prune.calibration.samples or shorter ones"
    )


def test_a_blend(run_dir: Path, tmp_path: Path):
    """7 samples of 4 at 2:1 are 5 and 2. With the end of text after it, each `aaaaa` has 6 tokens: 5 samples are 20
    tokens, 4 documents of the 9; `bbb` fills a sample, so 2 of the 9 are read."""
    sources = (
        BlendSource(lines(tmp_path / "a.jsonl", *["aaaaa"] * 9), language="pl", weight=2.0),
        BlendSource(lines(tmp_path / "b.jsonl", *["bbb"] * 9, key="body"), text_key="body", weight=1.0),
    )
    tokens, record = calibration.prepare(config(7, 4, *sources), run_dir)
    end, a, b = EOS, ord("a"), ord("b")
    of_a = [row for row in tokens.tolist() if a in row]
    assert of_a == [[a, a, a, a], [a, end, a, a], [a, a, a, end], [a, a, a, a], [a, end, a, a]]  # in their own order
    assert [row for row in tokens.tolist() if a not in row] == [[b, b, b, end]] * 2
    assert [(r["language"], r["samples"], r["tokens"], r["documents"]) for r in record["sources"]] == [
        ("pl", 5, 20, 4),
        ("", 2, 8, 2),
    ]
    assert [r["share"] for r in record["sources"]] == pytest.approx([2 / 3, 1 / 3])
    assert [r["weight"] for r in record["sources"]] == [2.0, 1.0]
    assert [r["path"] for r in record["sources"]] == [source.path for source in sources]
    assert record["languages"] == {"pl": {"samples": 5, "tokens": 20}, "text": {"samples": 2, "tokens": 8}}
    assert (record["samples"], record["tokens"]) == (7, 28)
    json.dumps(record)


def test_samples_of_the_sources_are_mixed_by_the_seed(run_dir: Path, tmp_path: Path):
    sources = [BlendSource(lines(tmp_path / f"{letter}.jsonl", letter * 100)) for letter in "ab"]

    def letters(seed: int) -> str:
        made = config(32, 4, *sources)
        made.run.seed = seed
        return "".join(chr(row[0]) for row in calibration.prepare(made, run_dir)[0].tolist())

    first = letters(1)
    assert Counter(first) == {"a": 16, "b": 16}
    assert first == letters(1) != letters(2)
    assert first not in ("a" * 16 + "b" * 16, "ab" * 16)


def test_one_language_from_two_sources_counts_together(run_dir: Path, tmp_path: Path):
    sources = [BlendSource(lines(tmp_path / f"{i}.jsonl", "a" * 40), language="pl", weight=i) for i in (1, 3)]
    _, record = calibration.prepare(config(8, 4, *sources), run_dir)
    assert [row["samples"] for row in record["sources"]] == [2, 6]
    assert record["languages"] == {"pl": {"samples": 8, "tokens": 32}}


def test_held_out_documents_are_never_in_it(run_dir: Path, tmp_path: Path):
    """40 documents of one repeated letter pair each, half of them held out: none of their letters appears."""
    pairs = [f"{chr(97 + i % 20)}{chr(65 + i // 20)}" for i in range(40)]
    made = config(10, 4, BlendSource(lines(tmp_path / "a.jsonl", *(pair * 2 for pair in pairs))))
    made.data.held_out_fraction = 0.5
    held_out = [pair for pair in pairs if is_held_out(Document(pair * 2, "", 0), 0.5, made.run.seed)]
    assert 10 < len(held_out) < 30
    tokens, record = calibration.prepare(made, run_dir)
    ids = [i for i in tokens.flatten().tolist() if i != EOS]
    text = bytes(ids).decode()
    assert not [pair for pair in held_out if pair in text]
    (row,) = record["sources"]
    # 40 tokens are 8 documents of 5, out of the first ones; those held out before the last of them were passed over.
    kept = [i for i, pair in enumerate(pairs) if pair not in held_out][:8]
    assert row["documents"] == 8 and row["held_out_documents"] == kept[-1] + 1 - 8 > 0
    assert set(text) == set("".join(pairs[i] for i in kept))


def test_too_short_a_source_is_named(run_dir: Path, tmp_path: Path):
    """The second source is to give 2 of 4 samples of 4 = 8 tokens; it has 3 + 1 and 2 + 1 = 7."""
    path = lines(tmp_path / "b.jsonl", "bbb", "bb")
    sources = (BlendSource(lines(tmp_path / "a.jsonl", "a" * 90)), BlendSource(path))
    with pytest.raises(DataError) as caught:
        calibration.prepare(config(4, 4, *sources), run_dir)
    assert str(caught.value) == (
        f"prune.calibration.sources[1]: found 7 tokens in 2 documents of {path}: 1 samples of "
        "prune.calibration.seq_length=4, wanted 2; give more text, fewer prune.calibration.samples or shorter ones"
    )


def test_too_short_a_source_of_which_a_part_is_held_out(run_dir: Path, tmp_path: Path):
    made = config(4, 4, BlendSource(lines(tmp_path / "a.jsonl", "a" * 90)))
    made.data.held_out_fraction = 1.0
    with pytest.raises(DataError, match=r"found 0 tokens in 0 documents of .* and 1 held-out ones, which are left out"):
        calibration.prepare(made, run_dir)


def test_a_bad_line_is_named(run_dir: Path, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"body": "a"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: no key 'text'"):
        calibration.prepare(config(4, 4, BlendSource(str(tmp_path / "a.jsonl"))), run_dir)


def test_it_is_kept_beside_the_scores(run_dir: Path):
    tokens, _ = calibration.prepare(config(4, 4), run_dir)
    calibration.save(tokens, run_dir / "score")
    assert calibration.load(run_dir).equal(tokens)


@pytest.mark.skipif(not POLISH, reason="BIELIK_NEMO_POLISH_TEXTS names no directory of Polish books")
def test_polish_novels_and_package_documentation(run_dir: Path):
    """24 samples at 3:1 are 18 and 6; in the text's own letters, two bytes each."""
    sources = (
        BlendSource(POLISH, language="pl", weight=3.0),
        BlendSource("builtin:package-docs", language="en", weight=1.0),
    )
    tokens, record = calibration.prepare(config(24, 512, *sources), run_dir)
    assert tokens.shape == (24, 512)
    assert record["languages"] == {
        "pl": {"samples": 18, "tokens": 18 * 512},
        "en": {"samples": 6, "tokens": 6 * 512},
    }
    assert record["sources"][0]["documents"] == 1  # the first novel is long enough
    texts = [bytes(i for i in row if i < 256).decode(errors="ignore") for row in tokens.tolist()]
    assert sum(any(letter in text for letter in "ąćęłńóśźż") for text in texts) >= 18
