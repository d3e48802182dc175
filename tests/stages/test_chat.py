"""Conversations -> datasets of marked tokens. The tiny tokenizer: a byte is a token, then <s> 256, </s> 257, <pad> 258,
<|im_start|> 259, <|im_end|> 260; its end of text is <|im_end|>, so that no </s> follows the last answer."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from bielik_nemo import pipeline
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.config_align import ChatSource
from bielik_nemo.data.text import Document, is_held_out
from bielik_nemo.engine import cpu
from bielik_nemo.errors import DataError

cpu.enable()

from bielik_nemo.engine.labelled import Conversations  # noqa: E402
from bielik_nemo.stages import GRAPH, chat  # noqa: E402

S, START, END = 256, 259, 260


@pytest.fixture
def run_dir(tiny_hf: Path, tmp_path: Path) -> Path:
    """A run directory after the import of the tiny model."""
    shutil.copytree(tiny_hf, tmp_path / "run" / "import_hf" / "tokenizer")
    (tmp_path / "run" / "chat").mkdir()
    Architecture.from_hf(tiny_hf).to_json(tmp_path / "run" / "import_hf" / "architecture.json")
    return tmp_path / "run"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made = Config()
    made.sft.sources = [ChatSource(path=str(tmp_path / "a.jsonl"))]
    made.chat.held_out_fraction = 0.5
    return made


def line(prompt: str, answer: str, **more: object) -> str:
    return json.dumps({"instruction": prompt, "output": answer} | more) + "\n"


def expected(prompt: str, answer: str) -> tuple[list[int], list[bool]]:
    asked = [S, START, *f"user\n{prompt}".encode(), END, *b"\n", START, *b"assistant\n"]
    answered = [*answer.encode(), END, *b"\n"]
    return asked + answered, [False] * len(asked) + [True] * len(answered)


def held_out(prompt: str, config: Config) -> bool:
    return is_held_out(Document(prompt, "", 0), config.chat.held_out_fraction, config.run.seed)


def written(prefix: Path) -> list[tuple[list[int], list[bool]]]:
    return [(each.ids.tolist(), each.trained.tolist()) for each in Conversations(prefix)]


def test_every_conversation_is_on_one_side_with_its_marks_and_weight(run_dir: Path, config: Config, tmp_path: Path):
    """The second source has a weight of 0.7, and one line a weight of its own: 70 and 25 hundredths."""
    prompts = [f"Ile to {number}?" for number in range(8)]
    (tmp_path / "a.jsonl").write_text("".join(line(prompt, "Źle 🙂") for prompt in prompts))
    (tmp_path / "b.jsonl").write_text(
        line("b", "") + line("c", "\n", weight=0.25) + "".join(map(line, "defgh", "defgh"))
    )
    config.sft.sources.append(ChatSource(path=str(tmp_path / "b.jsonl"), language="pl", weight=0.7))
    summary = chat.run(config, run_dir)
    here = run_dir / "chat"
    assert summary == json.loads((here / "summary.json").read_text())
    answers = [{prompt: "Źle 🙂" for prompt in prompts}, {"b": "", "c": "\n"} | {name: name for name in "defgh"}]
    for side in ("train", "held_out"):
        weights, totals = load_file(here / side / "weights.safetensors"), [0, 0, 0]
        for number, source in enumerate(answers):
            mine = [prompt for prompt in source if held_out(prompt, config) == (side == "held_out")]
            assert mine, "the seed puts a source on one side: take another"
            documents = [expected(prompt, source[prompt]) for prompt in mine]
            assert written(here / side / f"0000{number}") == documents
            own = {"c": 25} if number else {}
            assert weights[f"0000{number}"].tolist() == [own.get(prompt, 70 if number else 100) for prompt in mine]
            counts = [len(mine), sum(len(ids) for ids, _ in documents), sum(sum(marks) for _, marks in documents)]
            totals = [a + b for a, b in zip(totals, counts, strict=True)]
            if side == "train":
                row = dict(zip(("conversations", "tokens", "trained_tokens"), counts, strict=True))
                names = {"name": "ab"[number] + ".jsonl", "language": "pl" if number else ""}
                assert summary["sources"][number] == names | row | {"skipped": 0}
        assert list(summary[side].values()) == totals
    assert (here / "skipped.jsonl").read_text() == ""
    assert not list(here.rglob("*partial*"))


def test_a_bad_line_is_left_out_counted_and_written_down(run_dir: Path, config: Config, tmp_path: Path):
    """One in 20,000 lines, of which 0.1 % may be bad; what the line says is not repeated."""
    rows = [line(f"{number}", "a") for number in range(20_000)]
    rows[1233] = '{"instruction": "sekret", "output": \n'
    (tmp_path / "a.jsonl").write_text("".join(rows))
    summary = chat.run(config, run_dir)
    assert sum(summary[side]["conversations"] for side in ("train", "held_out")) == 19_999
    assert summary["sources"][0]["skipped"] == 1
    (row,) = map(json.loads, (run_dir / "chat" / "skipped.jsonl").read_text().splitlines())
    assert (row["file"], row["line"]) == (str(tmp_path / "a.jsonl"), 1234)
    assert row["why"].startswith("not JSON") and "sekret" not in row["why"]


def test_more_bad_lines_than_allowed_stop_the_stage(run_dir: Path, config: Config, tmp_path: Path):
    """Blank lines are none: 5 of 1,000 are 0.5 %. The share is of each source, so that none hides another."""
    config.chat.max_bad_share = 0.005
    rows = [line(f"{number}", "a") + "\n" for number in range(1000)]
    rows[3:8] = ["no\n"] * 5
    (tmp_path / "a.jsonl").write_text("".join(rows))
    assert chat.run(config, run_dir)["sources"][0]["skipped"] == 5
    shutil.rmtree(run_dir / "chat")
    (run_dir / "chat").mkdir()
    rows[8] = line("x", "y").replace("output", "answer")
    (tmp_path / "b.jsonl").write_text("".join(rows))
    config.sft.sources.append(ChatSource(path=str(tmp_path / "b.jsonl")))
    with pytest.raises(DataError) as caught, pipeline._failure(run_dir / "chat", GRAPH["chat"]):
        chat.run(config, run_dir)
    path, place = tmp_path / "b.jsonl", [7, 8, 9]  # a blank line is behind each good one: lines 1, 3, 5, then 7 to 12
    reasons = "; ".join(
        f"{path}:{number}: not JSON: Expecting value at column 1; expected an object" for number in place
    )
    assert str(caught.value) == (
        f"sft.sources[1].path={path}: 6 of 1,000 lines (0.60%) cannot be used, allowed: 0.50% (chat.max_bad_share); "
        f"{reasons}; all: {run_dir / 'chat' / 'skipped.jsonl'}"
    )
    assert len((run_dir / "chat" / "skipped.jsonl").read_text().splitlines()) == 11
    assert [path.name for path in (run_dir / "chat").iterdir()] == ["skipped.jsonl"]  # the pipeline clears the rest


def test_copies_of_a_prompt_are_on_one_side(run_dir: Path, config: Config, tmp_path: Path):
    """Three copies of each prompt: another case, other white space, and one with a second question behind it."""
    prompts = [f"Żółw {number}" for number in range(30)]
    rows = [line(copy, "a") for prompt in prompts for copy in (prompt, prompt.upper(), prompt.replace(" ", "\n "))]
    turns = [("user", "{}"), ("assistant", "b"), ("user", "I co?"), ("assistant", "c")]
    for prompt in prompts:
        messages = [{"role": role, "content": text.format(prompt)} for role, text in turns]
        rows.append(json.dumps({"messages": messages}) + "\n")
    (tmp_path / "a.jsonl").write_text("".join(rows))
    summary = chat.run(config, run_dir)
    assert summary["train"]["conversations"] % 4 == summary["held_out"]["conversations"] % 4 == 0
    sides = []
    for side in ("train", "held_out"):
        texts = [bytes(i for i in ids if i < 256).decode() for ids, _ in written(run_dir / "chat" / side / "00000")]
        sides.append({int("".join(filter(str.isdigit, text))) for text in texts})
    assert all(sides) and not sides[0] & sides[1]


def test_a_source_with_nothing_held_out_has_no_dataset_there(run_dir: Path, config: Config, tmp_path: Path):
    trained = next(prompt for prompt in map(str, range(99)) if not held_out(prompt, config))
    (tmp_path / "a.jsonl").write_text("".join(line(f"{number}", "a") for number in range(20)))
    (tmp_path / "b.jsonl").write_text(line(trained, "a"))
    config.sft.sources.append(ChatSource(path=str(tmp_path / "b.jsonl")))
    chat.run(config, run_dir)
    assert sorted(path.name for path in (run_dir / "chat" / "held_out").glob("0*")) == ["00000.bin", "00000.idx"]
    assert list(load_file(run_dir / "chat" / "held_out" / "weights.safetensors")) == ["00000"]
    config.sft.sources = config.sft.sources[1:]
    shutil.rmtree(run_dir / "chat")
    (run_dir / "chat").mkdir()
    with pytest.raises(DataError, match=r"held_out_fraction=0\.5: no conversations fall on the held_out side"):
        chat.run(config, run_dir)
    assert not list((run_dir / "chat").rglob("*.idx"))


def test_a_source_without_lines(run_dir: Path, config: Config, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match=r"sft\.sources\[0\]\.path=.*a\.jsonl: holds no lines"):
        chat.run(config, run_dir)


@pytest.mark.parametrize("template, what", [("x", "none"), ("{{ '' }}", "every one")])
def test_a_set_in_which_nothing_is_trained_or_everything(
    run_dir: Path, config: Config, tmp_path: Path, template: str, what: str
):
    """A template that writes the same whatever is said, and one that writes the answers alone."""
    if what == "every one":
        template = "{% for m in messages if m.role == 'assistant' %}{{ m.content }}{% endfor %}"
    path = run_dir / "import_hf" / "tokenizer" / "chat_template.jinja"
    path.write_text(template)
    config.chat.template = "tokenizer"
    (tmp_path / "a.jsonl").write_text("".join(line(f"{number}", "a") for number in range(20)))
    with pytest.raises(DataError, match=rf"sft\.sources\[0\]\.path=.*: of 20 tokens {what} is trained; allowed: "):
        chat.run(config, run_dir)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_bad_line_in_a_million_and_memory_that_does_not_grow(run_dir: Path, config: Config, tmp_path: Path):
    """A million examples at once would take 1 GB. What grows is Megatron's list of lengths, and a byte for each."""
    with open(tmp_path / "a.jsonl", "w") as file:
        for number in range(1_000_000):
            file.write(line(f"{number}", "tak") if number != 777_776 else '{"instruction": 1, "output": "x"}\n')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    summary = chat.run(config, run_dir)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert sum(summary[side]["conversations"] for side in ("train", "held_out")) == 999_999
    assert summary["sources"][0]["skipped"] == 1
    (row,) = map(json.loads, (run_dir / "chat" / "skipped.jsonl").read_text().splitlines())
    assert (row["line"], row["why"]) == (777_777, "'instruction' is not text")
    assert grown < 400 * 1024
