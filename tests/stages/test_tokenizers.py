"""Tokenizers side by side: the tiny model's, of which every byte is a token, and one whose tokens are words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bielik_nemo import cli, pipeline, report
from bielik_nemo.config import Config, compose

POLISH = "ala ma kota\nżółw ma kota"


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    words = sorted({*POLISH.split(), "the", "</s>", "<unk>"})
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>").save_pretrained(
        tmp_path / "words"
    )
    (tmp_path / "pl.txt").write_text(POLISH)
    (tmp_path / "en.jsonl").write_text('{"text": "the"}\n{"text": "the the"}\n')
    (tmp_path / "own").mkdir()
    from bielik_nemo.data.tiny import byte_tokenizer

    byte_tokenizer().save_pretrained(tmp_path / "own")
    texts = f"[{{path:'{tmp_path}/pl.txt',language:pl}},{{path:'{tmp_path}/en.jsonl',language:en}}]"
    return [
        f"model.source='{tmp_path}/own'",
        f"tokenizers.compared={{words:'{tmp_path}/words'}}",
        f"data.sources={texts}",
        f"run.dir='{tmp_path}/run'",
    ]


def measured(config: Config) -> dict:
    return json.loads(Path(config.run.dir, "tokenizers", "metrics.json").read_text())["tokenizers"]


def test_every_tokenizer_is_measured_by_language(overrides):
    """`ala ma kota\\nżółw ma kota`: 24 characters, 3 of them of two bytes, 6 words; of "the" the first document."""
    assert cli.main(["tokenizers", *overrides, "tokenizers.documents=1"]) == 0
    config = compose("", [*overrides, "tokenizers.documents=1"])
    found = measured(config)
    assert list(found) == ["source", "words"] and list(found["words"]["languages"]) == ["pl", "en"]
    assert found["source"]["vocab_size"] == 263
    bytes_, words = (found[name]["languages"]["pl"] for name in ("source", "words"))
    assert (bytes_["tokens"], bytes_["characters"], words["tokens"], words["documents"]) == (27, 24, 6, 1)
    assert words["characters_per_token"] == pytest.approx(4) and words["tokens_per_word"] == pytest.approx(1)
    assert found["words"]["languages"]["en"]["tokens"] == 1
    console = Console(width=80, record=True)
    console.print(report.table({"tokenizers": found}))
    row = next(line for line in console.export_text().splitlines() if line.split()[:2] == ["pl", "words"])
    assert row.split() == ["pl", "words", "7", "4.00", "4.50", "1.00"]


def test_a_tokenizer_that_changes_is_measured_again(overrides, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    config = compose("", overrides)
    pipeline.run(config, ["tokenizers"])
    pipeline.run(config, ["tokenizers"])
    assert "done before" in capfd.readouterr().err
    path = tmp_path / "words" / "tokenizer.json"
    path.write_text(path.read_text().replace('"the"', '"then"'))
    pipeline.run(config, ["tokenizers"])
    assert "done before" not in capfd.readouterr().err
    assert measured(config)["words"]["vocab_size"] == 7
    assert measured(config)["words"]["languages"]["en"]["unknown"] == 3  # "the" is no longer among its words


def test_a_tokenizer_that_is_not_there_is_named(overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = f"tokenizers.compared={{words:'{tmp_path}/nowhere'}}"
    assert cli.main(["tokenizers", *overrides, found]) == 2
    assert capsys.readouterr().err == (
        f"error: tokenizers.compared.words: found no tokenizer in '{tmp_path}/nowhere', allowed: a directory with one "
        "of tokenizer.json, tokenizer.model, vocab.json, or builtin:smollm2 or builtin:tiny or builtin:tiny_bpe\n"
    )
    assert not (tmp_path / "run").exists()
