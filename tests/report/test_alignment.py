"""The report of a made-up run of SFT and preference optimisation, without pruning."""

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

SOURCES = [
    {"name": "pl<1>", "language": "pl", "tokens": 9000, "trained_tokens": 3000, "skipped": 2},
    {"name": "$en$", "language": "en", "tokens": 1000, "trained_tokens": 500, "skipped": 0},
]
PREFERENCE = {
    "sft": {"likelier": 0.25},  # the reference
    "dpo": {"likelier": 0.75, "accuracy": 0.875, "margin": 1.5, "chosen_log_ratio": -0.25, "kl": 0.0625},
}


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def run_dir(tmp_path):
    run = tmp_path / "aligned"
    put(run / "import_hf" / "architecture.json", asdict(Architecture(2, 8, 16, 2, 1, 4, 10, False)))
    for stage, unit in (("chat", "conversations"), ("preferences", "pairs")):
        put(run / stage / "summary.json", {"sources": [row | {unit: 100} for row in SOURCES]})
    parts = {
        "held_out_loss_by_source": {"pl<1>": 3.0, "$en$": 1.0},
        "held_out_loss_by_language": {"pl": 3.0, "en": 1.0},
    }
    measured = [{"step": step, "held_out_loss": 2.0, **parts} for step in (0, 2)]
    told = [{"step": step, "loss": 2.0, "lr": 1e-5, "grad_norm": 1.0, "trained_tokens": 40} for step in (1, 2)]
    put(run / "sft" / "metrics.jsonl", lines(measured[0], *told, measured[1]))
    put(run / "sft" / "batches.json", {"sequences": 7, "filled": 0.975})
    pairs = {"held_out_accuracy": 0.875, "held_out_margin": 1.5}
    pairs |= {"held_out_chosen_log_ratio": -0.25, "held_out_rejected_log_ratio": -15.0}
    trained = {"step": 1, "loss": 0.5, "chosen_reward": 0.25, "rejected_reward": -1.25}
    rows = ({"step": 0, "held_out_loss": 0.6931}, trained, {"step": 1, "held_out_loss": 0.4, **pairs})
    put(run / "dpo" / "metrics.jsonl", lines(*rows))
    put(
        run / "evaluate" / "metrics.json",
        {
            "answer_loss": {"source": 3.5, "sft": 2.0, "dpo": 2.125},
            "answer_loss_by_language": {"source": {"pl": 4.0, "en": 2.0}, "sft": {"pl": 3.0, "en": 1.0}},
            "preference": PREFERENCE,
        },
    )
    put(run / "sft" / "manifest.json", {"stage": "sft", "seconds": 3.0})
    put(run / "merge" / "manifest.json", {"stage": "merge", "seconds": 1.0})
    return run


class Reader(HTMLParser):
    """The text of a page."""

    def __init__(self, html):
        super().__init__()
        self.text = ""
        self.feed(html)

    def handle_data(self, data):
        self.text += data


def shown(numbers):
    file = io.StringIO()
    Console(file=file, width=80).print(report.table(numbers))
    return file.getvalue()


def test_numbers_are_those_of_the_files(run_dir):
    report.write(run_dir)
    numbers = json.loads((run_dir / "report.json").read_text())
    assert numbers["answer_loss"] == {"source": 3.5, "sft": 2.0, "dpo": 2.125}
    assert numbers["answer_loss_by_language"]["sft"] == {"pl": 3.0, "en": 1.0}
    assert numbers["preference"] == PREFERENCE
    assert [row["step"] for row in numbers["sft"]["training"]] == [1, 2]
    assert numbers["sft"]["validation"][0]["held_out_loss_by_source"] == {"pl<1>": 3.0, "$en$": 1.0}
    assert numbers["dpo"]["validation"][1]["held_out_margin"] == 1.5
    assert numbers["filled"] == {"sft": 0.975}
    assert numbers["pairs"][0] == {**SOURCES[0], "pairs": 100}
    assert list(numbers["seconds"]) == ["sft", "merge"]
    assert "held_out_loss" not in numbers and "answer_loss_by_source" not in numbers


def test_page_tells_every_model_every_curve_and_every_source(run_dir):
    """Two measures of every model; curves of SFT: loss, held-out, by source, by language, rate, norm; of DPO: loss,
    held-out loss, accuracy, margin, both answers against the reference, rewards."""
    html = page(report.collect(run_dir))
    titles = [plot.split("<title>")[1].split("<")[0] for plot in html.split("<svg ")[1:]]
    assert titles == [
        "Answers by model: source 3.5, sft 2, dpo 2.125",
        "Pairs by model: sft 0.25, dpo 0.75",
        "Loss, nats per trained token, by step",
        "Held-out answers, nats per trained token, by step",
        "Held-out answers, by source, by step",
        "Held-out answers, by language, by step",
        "Learning rate, by step",
        "Gradient norm, by step",
        "Loss, nats per pair, by step",
        "Held-out loss, nats per pair, by step",
        "Held-out accuracy, share of the pairs, by step",
        "Held-out margin, of rewards, by step",
        "Held-out answers against the reference, nats above it, by step",
        "Rewards, of a batch&#x27;s answers, by step",
    ]
    assert all(f">{name}<" in html for name in ("pl&lt;1&gt;", "$en$", "chosen", "rejected"))
    text = Reader(html).text
    for said in (
        "held-out answers (nats per trained token) 3.500 source → 2.000 sft → 2.125 dpo",
        "held-out pairs whose chosen answer is the likelier 25.0 % sft → 75.0 % dpo",
        "97.5 % of the positions of its sequences hold a token.",
        "87.5 %+1.500\N{MINUS SIGN}0.2500.0625",
        "9,0003,0002",
    ):
        assert said.lower() in text.lower(), said
    assert "None" not in html and "nan" not in html.lower().replace("nand", "")


def test_terminal_table_fits_80_columns(run_dir):
    text = shown(report.collect(run_dir))
    assert max(map(len, text.splitlines())) <= 80
    cells = [line.split() for line in text.splitlines()]
    assert ["source", "3.500"] in cells
    assert ["dpo", "2.125", "75.0%", "87.5%", "+1.500", "-0.250", "0.0625"] in cells


@pytest.mark.parametrize("stage", ["chat", "preferences", "sft", "dpo", "evaluate"])
def test_what_is_missing_is_left_out(run_dir, stage):
    for path in (run_dir / stage).iterdir():
        path.unlink()
    numbers = report.collect(run_dir)
    heading = {"sft": "Supervised fine-tuning", "dpo": "Preference optimisation", "evaluate": "Held-out answers</h2>"}
    full = page(numbers)
    assert "None" not in full + shown(numbers)
    if stage == "evaluate":
        assert heading[stage] not in full and "answer_loss" not in numbers


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("evaluate/metrics.json", {"answer_loss": {"sft": "2"}}, r"answer_loss\.sft: found '2', allowed: a number"),
        ("evaluate/metrics.json", {"preference": [1]}, r"preference: found \[1\], allowed: an object of source, "),
        ("evaluate/metrics.json", {"preference": {"dpo": {"kl": "1"}}}, r"preference\.dpo\.kl: found '1'"),
        ("chat/summary.json", {"sources": {"a": 1}}, r"summary\.json: sources: found .*, allowed: a list of sources"),
        ("chat/summary.json", {"sources": [{"tokens": "many"}]}, r"sources\[0\]\.tokens: found 'many'"),
        ("sft/batches.json", {"filled": "all"}, r"batches\.json: filled: found 'all', allowed: a number"),
        ("sft/metrics.jsonl", '{"step": 1, "held_out_loss_by_source": {"a": "b"}}\n', r"line 1: held_out_loss_by_sou"),
    ],
)
def test_damaged_files_are_one_error(run_dir, file, content, message):
    put(run_dir / file, content)
    with pytest.raises(DataError, match=message):
        report.collect(run_dir)
