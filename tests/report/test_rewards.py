"""The report of a made-up run of GRPO."""

import io
import json
from dataclasses import asdict
from html.parser import HTMLParser

import pytest
from rich.console import Console

from bielik_nemo import report
from bielik_nemo.architecture import Architecture
from bielik_nemo.errors import DataError
from bielik_nemo.report.page import page

SOURCE = {"name": "drills<1>", "language": "pl", "tasks": 1200, "tokens": 34000, "skipped": 3}
MODELS = {
    "sft": {"reward": 0.25, "reward_se": 0.03125, "correct": 0.25, "answer_tokens": 11.5, "wrong_tokens": 12.25},
    "grpo": {"reward": 0.5, "reward_se": 0.0625, "correct": 0.5, "answer_tokens": 11.0, "wrong_tokens": 12.0},
}
TOLD = {"reward": 0.25, "correct": 0.25, "unverifiable": 0.0, "answer_tokens": 11.0, "wrong_tokens": 12.0, "cut": 0.125}
POLICY = {"signal": 0.75, "kl": 0.001, "clipped": 0.01, "entropy": 0.5, "mismatch": 1e-6, "lr": 1e-4, "grad_norm": 1.0}


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def answer(text, verdict="wrong", value=0.0):
    return {
        "prompt": "max 3 <b>5</b>",
        "answer": text,
        "verdict": verdict,
        "value": value,
        "tokens": 9,
        "parts": {"maths": value},
    }


@pytest.fixture
def run_dir(tmp_path):
    run = tmp_path / "rewarded"
    put(run / "import_hf" / "architecture.json", asdict(Architecture(2, 8, 16, 2, 1, 4, 10, False)))
    put(run / "tasks" / "summary.json", {"sources": [SOURCE], "stop_ids": [260]})
    measured = {f"held_out_{name}": value for name, value in TOLD.items()} | {"held_out_reward_se": 0.05}
    measured |= {"held_out_reward_by_source": {"drills<1>": 0.25, "$b$": 0.5}}
    rows = ({"step": step, "loss": -0.001, **TOLD, **POLICY} for step in (1, 2))
    put(run / "grpo" / "metrics.jsonl", lines({"step": 0, **measured}, *rows, {"step": 2, **measured}))
    first = answer("of the first rollout")
    put(run / "grpo" / "rollouts" / "00000.jsonl", lines(first))
    right = answer("<script>alert(1)</script>", "correct", 1.0)
    put(run / "grpo" / "rollouts" / "00001.jsonl", lines(*[answer("x" * 3000)] * 3, right, answer("?", "unverifiable")))
    put(run / "evaluate" / "metrics.json", {"tasks": MODELS})
    put(run / "grpo" / "manifest.json", {"stage": "grpo", "seconds": 3.0})
    put(run / "tasks" / "manifest.json", {"stage": "tasks", "seconds": 1.0})
    return run


class Reader(HTMLParser):
    """The text of a page, and its tags."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags = "", set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


def shown(numbers):
    file = io.StringIO()
    Console(file=file, width=80).print(report.table(numbers))
    return file.getvalue()


def test_numbers_are_those_of_the_files(run_dir):
    """Of the last rollout two answers of each verdict; of 3,000 characters 2,000 and a sign that more follow."""
    report.write(run_dir)
    numbers = json.loads((run_dir / "report.json").read_text())
    assert numbers["rewards"] == MODELS
    assert numbers["tasks"] == [SOURCE]
    assert [row["step"] for row in numbers["grpo"]["training"]] == [1, 2]
    assert numbers["grpo"]["training"][0]["signal"] == 0.75
    assert [row["held_out_reward_se"] for row in numbers["grpo"]["validation"]] == [0.05, 0.05]
    assert [row["verdict"] for row in numbers["answers"]] == ["correct", "wrong", "wrong", "unverifiable"]
    assert len(numbers["answers"][1]["answer"]) == 2002
    assert list(numbers["seconds"]) == ["tasks", "grpo"]


def test_page_tells_every_model_every_curve_and_some_answers(run_dir):
    html = page(report.collect(run_dir))
    titles = [plot.split("<title>")[1].split("<")[0] for plot in html.split("<svg ")[1:]]
    assert titles == [
        "Held-out reward, mean and standard error, by step",
        "Reward, of a rollout&#x27;s answers, by step",
        "Held-out reward, by source, by step",
        "Held-out tasks, correct, share of the answers, by step",
        "Correct, share of a rollout&#x27;s answers, by step",
        "Held-out tasks, length, tokens, by step",
        "Length, tokens of a rollout&#x27;s answers, by step",
        "KL from the reference, nats per token, by step",
        "Entropy, nats per token, by step",
        "Groups with a signal, share, by step",
        "Clipped, share of the tokens, by step",
        "Cut at the longest length, share of the answers, by step",
        "What samples against what trains, nats per token, by step",
        "Learning rate, by step",
        "Gradient norm, by step",
    ]
    reader = Reader(html)
    assert "script" not in reader.tags and "b" in reader.tags
    for said in (
        "mean reward on held-out tasks 0.250 sft → 0.500 grpo",
        "GRPO0.500 ± 0.06250.0 %11.012.0",
        "<script>alert(1)</script>",
        "max 3 <b>5</b>",
        "reward 1, 9 tokens, maths 1",
        "drills<1>pl1,20034,0003",
    ):
        assert said.lower() in reader.text.lower(), said
    assert "of the first rollout" not in html
    assert "None" not in html and "nan" not in html.lower()


def test_the_standard_error_is_a_band_about_the_reward(run_dir):
    """A line with points and its band, where without the column there is the line alone."""
    full = page(report.collect(run_dir))
    rows = [json.loads(line) for line in (run_dir / "grpo" / "metrics.jsonl").read_text().splitlines()]
    put(
        run_dir / "grpo" / "metrics.jsonl",
        lines(*({k: v for k, v in row.items() if k != "held_out_reward_se"} for row in rows)),
    )
    assert full.count("opacity: 0.2") == 1
    assert "opacity: 0.2" not in page(report.collect(run_dir))


def test_terminal_table_fits_80_columns(run_dir):
    text = shown(report.collect(run_dir))
    assert max(map(len, text.splitlines())) <= 80
    cells = [line.split() for line in text.splitlines()]
    assert ["sft", "0.250", "+-", "0.031", "25.0", "%", "11.5", "12.2"] in cells


@pytest.mark.parametrize("stage", ["tasks", "grpo", "evaluate"])
def test_what_is_missing_is_left_out(run_dir, stage):
    for path in (run_dir / stage).rglob("*.json*"):
        path.unlink()
    numbers = report.collect(run_dir)
    assert "None" not in page(numbers) + shown(numbers)
    headings = {"evaluate": "Held-out tasks</h2>", "grpo": "Answers and their rewards"}
    assert stage not in headings or headings[stage] not in page(numbers)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "evaluate/metrics.json",
            {"tasks": {"grpo": {"reward": "1"}}},
            r"tasks\.grpo\.reward: found '1', allowed: a num",
        ),
        ("tasks/summary.json", {"sources": 1}, r"summary\.json: sources: found 1, allowed: a list of sources"),
        ("tasks/summary.json", {"sources": [{"tasks": "many"}]}, r"sources\[0\]\.tasks: found 'many'"),
        ("grpo/metrics.jsonl", '{"step": 1, "loss": 1, "reward": "a"}\n', r"line 1: reward: found 'a'"),
        ("grpo/rollouts/00001.jsonl", lines(answer("a", "right")), r"00001\.jsonl: line 1: found no answer, allowed: "),
        ("grpo/rollouts/00001.jsonl", lines(answer("a", value="b")), r"00001\.jsonl: line 1: value: found 'b'"),
    ],
)
def test_damaged_files_are_one_error(run_dir, file, content, message):
    put(run_dir / file, content)
    with pytest.raises(DataError, match=message):
        report.collect(run_dir)
