"""`bielik-nemo data preview` through the command line. Tokens are bytes, <s> and ChatML's marks (see tests/data)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bielik_nemo import cli
from bielik_nemo.data.builtin_chat import CORRECTIONS, pairs
from bielik_nemo.data.tiny import byte_tokenizer
from bielik_nemo.errors import DataError

Preview = Callable[..., tuple[int, str, str]]


@pytest.fixture
def model(random_hf: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint of which only shape and tokenizer are there: nothing else is read."""
    byte_tokenizer().save_pretrained(tmp_path / "model")
    shutil.copy(random_hf("llama") / "config.json", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def preview(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Preview:
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def run(*overrides: str) -> tuple[int, str, str]:
        given = [f"model.source='{model}'", "experiment=tiny", f"run.dir='{tmp_path}/none'"]
        status = cli.main(["data", "preview", *given, *overrides])
        return status, *capsys.readouterr()

    return run


def write(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_conversations_and_pairs_with_brackets(preview: Preview, tmp_path: Path):
    """<s>, two marks, `user`, break, question, mark, break; mark, `assistant`, break; answer, mark, break:
    1 + 1 + 5 + 2 + 2 + 1 + 10 = 22 tokens and 4 + 2 trained ones for 'ab' and the four bytes of 🙂."""
    source = write(
        tmp_path / "a.jsonl",
        {"instruction": "ab", "output": "🙂"},
        {"messages": []},
        {"instruction": "\x1b[31m" + "x" * 2000, "output": "długa " * 30},
        {"instruction": "third", "output": ""},
    )
    second = write(tmp_path / "b.jsonl", {"prompt": "ab", "chosen": "c", "rejected": "d"})
    status, out, err = preview(f"sft.sources=[{{path: '{source}'}}]", f"dpo.sources=[{{path: '{second}'}}]")
    assert (status, err) == (0, "")
    first = f"""{source}:1 conversation: 28 tokens, 6 trained (21%)
<s><|im_start|>user↵
ab<|im_end|>↵
<|im_start|>assistant↵
[[🙂<|im_end|>↵
]]
"""
    assert out.startswith(f"trained: between [[ and ]]; a line break: ↵\n\nsft.sources[0].path={source}\n\n{first}")
    assert f"{source}:3 conversation" in out and "third" not in out
    assert f"[[{'długa ' * 30}<|im_end|>↵\n]]" in out  # not folded at 80 columns
    assert "\\x1b[31mxxx" in out and "\x1b" not in out
    assert "(... 1," in out and "x" * 801 not in out
    assert "the first 4 lines: 3 usable, " in out
    assert f"left out: {source}:2: no assistant turn\n" in out
    for name, letter in (("chosen", "c"), ("rejected", "d")):
        text = f"{second}:1 {name}: 25 tokens, 3 trained (12%)\n<s><|im_start|>user↵\nab<|im_end|>↵\n"
        assert f"{text}<|im_start|>assistant↵\n[[{letter}<|im_end|>↵\n]]\n" in out
    assert not (tmp_path / "none").exists()


def test_colours(preview: Preview, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    source = write(tmp_path / "a.jsonl", {"instruction": "ab", "output": "ż"})
    status, out, _ = preview(f"sft.sources=[{{path: '{source}'}}]")
    assert status == 0
    assert "\x1b[2m<|im_start|>assistant↵\x1b[0m\n\x1b[32mż<|im_end|>↵\x1b[0m" in out
    assert "[[" not in out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "[[ż" in preview(f"sft.sources=[{{path: '{source}'}}]")[1]


def test_a_built_in_set(preview: Preview):
    try:
        next(pairs(CORRECTIONS))
    except DataError as error:
        pytest.skip(str(error))
    status, out, _ = preview(f"sft.sources=[{{path: {CORRECTIONS}}}]", f"dpo.sources=[{{path: {CORRECTIONS}}}]")
    assert status == 0
    assert out.count("the first 100 lines: 100 usable") == 2


def test_a_set_in_which_nothing_or_everything_is_trained_is_refused(preview: Preview, model: Path, tmp_path: Path):
    source = f"sft.sources=[{{path: '{write(tmp_path / 'a.jsonl', {'instruction': 'ab', 'output': 'c'})}'}}]"
    answers = "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}"
    for template, what in (("x", "none"), (answers, "every one")):
        (model / "chat_template.jinja").write_text(template)
        status, out, err = preview(source, "chat.template=tokenizer")
        assert status == 2
        assert err.startswith(f"error: sft.sources[0].path={tmp_path}/a.jsonl: of 1 tokens {what} is trained; ")
        assert "1 usable, 1 tokens" in out  # drawn before it is refused


def test_what_cannot_be_shown_is_one_line(preview: Preview, model: Path, tmp_path: Path):
    status, _, err = preview("sft.sources=[]", "dpo.sources=[]")
    none = "sft.sources, dpo.sources: found none, allowed: a list of paths for one of them or both"
    assert (status, err) == (2, f"error: {none}\n")
    bad = write(tmp_path / "a.jsonl", {"a": 1}, [2])
    status, _, err = preview(f"dpo.sources=[{{path: '{bad}'}}]")
    assert (status, err) == (
        2,
        f"error: dpo.sources[0].path={bad}: none of the first 2 lines can be used; {bad}:1: no key 'chosen'; "
        f"{bad}:2: expected a JSON object, found list\n",
    )
    status, _, err = preview(f"dpo.sources=[{{path: '{tmp_path}/none.jsonl'}}]")
    assert status == 2 and "none.jsonl: no such file or directory" in err
    assert preview(f"sft.sources=[{{path: '{write(tmp_path / 'empty.jsonl')}'}}]")[2].endswith("holds no lines\n")
    shutil.rmtree(model)
    status, _, err = preview(f"dpo.sources=[{{path: '{bad}'}}]")
    assert status == 2 and err.startswith("error: model.source: no such directory")


def test_the_tokenizer_that_the_model_is_given_counts(preview: Preview, tmp_path: Path):
    """The answer "kota" is four bytes of the model's, and one word of the new one's; the mark and the break are two."""
    given = byte_tokenizer()
    given.add_tokens(["kota"])
    given.save_pretrained(tmp_path / "new")
    source = write(tmp_path / "a.jsonl", {"instruction": "ab", "output": "kota"})
    overrides = (f"sft.sources=[{{path: '{source}'}}]", "dpo.sources=[]")
    assert "6 trained" in preview(*overrides)[1]
    swap = ("pipeline.stages=[import_hf,swap_tokenizer,chat]", f"swap_tokenizer.tokenizer='{tmp_path}/new'")
    assert "3 trained" in preview(*overrides, *swap)[1]
