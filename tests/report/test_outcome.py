"""The report of what ends a pipeline: quality by stage, benchmarks, speed, formats, tokenizers, cost.

Held-out loss 2.0 -> 4.0 -> 2.5 and 2.25 of a model from elsewhere. Two tasks: of `polemo2` 0.60 of 0.80 is kept, 75 %;
of `<dyk>` 0.49 of 0.50, 98 %. Cost: distill held 8 GPUs for half an hour, 4 GPU-hours at 2.5 EUR; sft 2 for an hour.
"""

import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from bielik_nemo import report
from bielik_nemo.architecture import Architecture
from bielik_nemo.errors import DataError
from bielik_nemo.report.benchmarks import newest, retention
from bielik_nemo.report.charts import _parts, anatomy
from bielik_nemo.report.page import page

OTHER = "<i>rival</i>"


def score(value, **verdict):
    return {"value": value, "low": value - 0.02, "high": value + 0.02, **verdict}


BENCHMARKS = {
    "teacher": "source",
    "confidence": 0.95,
    "tasks": {
        "polemo2": {
            "metric": "acc_norm",
            "samples": 400,
            "shots": 5,
            "group": "open_pl_llm",
            "models": {"source": score(0.80), "distilled": score(0.60), OTHER: score(0.70)},
            "above_chance": {"source": 0.6, "distilled": 0.25},
            "recovery": {"distilled": score(0.75, verdict="lost"), OTHER: score(0.875, verdict="lost")},
        },
        "<dyk>": {
            "metric": "f1",
            "samples": 1029,
            "shots": 0,
            "group": "",
            "models": {"source": score(0.50), "distilled": score(0.49), OTHER: score(0.60)},
            "recovery": {"distilled": score(0.98, verdict="within noise"), OTHER: score(1.2, verdict="gained")},
        },
    },
    "mean": {"distilled": score(0.865, verdict="lost"), OTHER: score(1.0375, verdict="gained")},
    "groups": {"open_pl_llm": {"distilled": score(0.75, verdict="lost")}},
}
LOAD = {"input_tokens": 128, "output_tokens": 64, "concurrency": 1}
SPEED = {
    "engine": "transformers",
    "device": "<cpu>",
    "dtype": "bfloat16",
    "bandwidth_gb_s": 1597.25,
    "points": [
        LOAD
        | {"model": "export", "ttft_ms": 27.3, "tpot_ms": 12.5, "tokens_per_second": 80.0, "peak_memory_gib": 13.75}
        | {"limit_tpot_ms": 10.0, "limit_tokens_per_second": 100.0, "bytes_per_token": 1.6e10},
        LOAD | {"model": "source", "ttft_ms": 24.6, "tpot_ms": 20.0, "tokens_per_second": 50.0},
    ],
    "ratios": [LOAD | {"model": "export", "speedup": 1.6, "limit_speedup": 1.5}],
}
FORMATS = {
    "tokens": 4096,
    "loss": 2.0,
    "formats": [
        {"name": "gguf:f16", "path": "gguf/model-f16.gguf", "bytes": 14_700_000_000, "bits_per_weight": 16.0}
        | {"loss": 2.002, "change": 0.001, "runtime": "llama.cpp", "imatrix": False},
        {"name": "gguf:q4_k_m", "path": "gguf/model-q4_k_m.gguf", "bytes": 44_000_000, "bits_per_weight": 4.85}
        | {"loss": 2.02, "change": 0.01, "runtime": "llama.cpp", "imatrix": True},
    ],
}
WORDS = {"characters_per_token": 2.5, "tokens_per_word": 3.22, "bytes_per_token": 2.75, "tokens": 900, "documents": 7}
TOKENIZERS = {
    "tokenizers": {
        "source": {"vocab_size": 32128, "languages": {"pl": WORDS, "": WORDS}},
        "<apt4>": {"vocab_size": 32000, "languages": {"pl": WORDS | {"tokens_per_word": 1.62}}},
    }
}
EVALUATE = {
    "held_out_loss": {"source": 2.0, "pruned": 4.0, OTHER: 2.25, "distilled": 2.5},
    "perplexity": {"source": 7.39},
    "bits_per_byte": {"source": 0.75, "pruned": 1.5, "distilled": 0.9375},
    "bits_per_byte_by_language": {"source": {"pl": 0.5, "en": 1.0}},
    "held_out_loss_by_source": {"source": {"web.jsonl": 1.5, "books": 2.5}},
    "agreement": {"pruned": {"kl": 1.5, "top1": 0.5, "tokens": 64}, "distilled": {"kl": 0.125, "top1": 0.875}},
    "benchmarks": BENCHMARKS,
    "samples": [{"prompt": "So", OTHER: " it <u>goes</u>", "distilled": " what"}],
}


@pytest.fixture
def run_dir(tmp_path):
    run = tmp_path / "outcome"
    put(run / "evaluate" / "metrics.json", EVALUATE)
    put(run / "benchmark" / "metrics.json", SPEED)
    put(run / "quantize" / "metrics.json", FORMATS)
    put(run / "tokenizers" / "metrics.json", TOKENIZERS)
    price = {"per_gpu_hour": 2.5, "currency": "EUR"}
    put(run / "distill" / "manifest.json", {"seconds": 1800.0, "gpus": 8, "price": price})
    put(run / "sft" / "manifest.json", {"seconds": 3600.0, "gpus": 2, "price": price})
    for stage in ("tokenizers", "benchmark", "quantize", "release"):
        put(run / stage / "manifest.json", {"seconds": 60.0, "gpus": 0})
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


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def shown(numbers):
    file = io.StringIO()
    Console(file=file, width=80).print(report.table(numbers))
    return file.getvalue()


def card(html, heading):
    return html.split(f"<h2>{heading}</h2>")[1].split("</section>")[0]


def test_numbers_are_those_of_the_files(run_dir):
    """Models of the pipeline come first, in the order in which they came to be; rows by load and then by model."""
    report.write(run_dir)
    numbers = json.loads((run_dir / "report.json").read_text())
    assert list(numbers["held_out_loss"]) == ["source", "pruned", "distilled", OTHER]
    assert numbers["agreement"] == EVALUATE["agreement"] and numbers["bits_per_byte"]["pruned"] == 1.5
    assert numbers["benchmarks"] == BENCHMARKS
    assert [row["model"] for row in numbers["speed"]["points"]] == ["source", "export"]
    assert numbers["speed"]["ratios"] == SPEED["ratios"] and numbers["speed"]["bandwidth_gb_s"] == 1597.25
    assert numbers["formats"] == FORMATS
    assert numbers["tokenizers"] == TOKENIZERS["tokenizers"]
    assert list(numbers["seconds"]) == ["tokenizers", "distill", "sft", "benchmark", "quantize", "release"]


def test_cost_is_gpus_times_hours_times_price(run_dir):
    """8 * 0.5 h = 4 GPU-hours for 10 EUR, 2 * 1 h = 2 for 5; stages without GPUs cost nothing."""
    cost = report.collect(run_dir)["cost"]
    assert cost["stages"]["distill"] == {"seconds": 1800.0, "gpus": 8, "gpu_hours": 4.0, "price": 10.0}
    assert cost["stages"]["quantize"] == {"seconds": 60.0}
    assert {key: cost[key] for key in ("gpu_hours", "price", "currency")} == {
        "gpu_hours": 6.0,
        "price": 15.0,
        "currency": "EUR",
    }
    put(run_dir / "sft" / "manifest.json", {"seconds": 3600.0, "gpus": 2})
    part = report.collect(run_dir)["cost"]
    assert part["gpu_hours"] == 6.0 and "price" not in part  # a sum without one of its parts would be wrong
    for stage in ("distill", "sft"):
        put(run_dir / stage / "manifest.json", {"seconds": 3600.0})
    assert "cost" not in report.collect(run_dir) and "GPU-hours" not in page(report.collect(run_dir))


def test_retention_is_told_best_first(run_dir):
    found = report.collect(run_dir)["benchmarks"]
    assert newest(found) == "distilled"
    rows = retention(found, "distilled")
    assert [(row["name"], row["value"], row["verdict"]) for row in rows] == [
        ("<dyk>", 0.98, "within noise"),
        ("polemo2", 0.75, "lost"),
    ]
    assert rows[1]["scores"] == {"source": 0.80, "distilled": 0.60}
    only = {"tasks": {"t": {"models": {}, "recovery": {OTHER: score(1.0, verdict="within noise")}}}}
    assert newest(only) == OTHER and newest({}) == ""


def test_a_recovery_that_means_nothing_says_why(run_dir):
    """Of a teacher that scores 0 nothing is a share; it is no row, and what is known of the rest is not changed."""
    nothing = {"models": {"source": {"value": 0.0}}, "recovery": {"distilled": {"reason": "the <teacher> scores 0"}}}
    assert retention({"tasks": {"t": nothing}}, "distilled") == []
    told = BENCHMARKS | {"tasks": BENCHMARKS["tasks"] | {"t": nothing}}
    put(run_dir / "evaluate" / "metrics.json", {"benchmarks": told})
    html = page(report.collect(run_dir))
    assert "<p>t: the &lt;teacher&gt; scores 0</p>" in html and "Kept by Distilled, best first: &lt;dyk&gt;" in html
    put(run_dir / "evaluate" / "metrics.json", {"benchmarks": {"tasks": {"t": nothing}}})
    html = page(report.collect(run_dir))
    assert "<p>t: the &lt;teacher&gt; scores 0</p>" in html and "Kept by" not in html


def test_page_tells_every_model_every_task_and_every_format(run_dir):
    html = page(report.collect(run_dir))
    reader = Reader(html)
    for said in (
        "kept of the source's benchmarks 86.5 % distilled",
        "Held-out lossnats per token2.0004.0002.5002.250",
        "Distilled2.5000.938",
        "KL from the sourcenats per token1.50000.1250",
        "Top-1 agreementwith the source50.0 %87.5 %",
        "What Distilled kept, best first",
        "with its 95 % interval. On average 86.5 % (84.5 to 88.5) lost",
        "<dyk>0.5000.49098.0 % (96.0 to 100.0)within noise",
        "polemo2open_pl_llm, acc_norm, 5 shots, 400 documents0.8000.780 to 0.820",
        "the same above chance0.6000.250",
        "Kept of open_pl_llm75.0 %",
        "Kept, on average86.5 %103.8 %",
        "transformers, <cpu>, bfloat16, 1,597.2 GB/s.",
        "128+64 x1export27.312.58010080.0 %13.81.60 (1.50)",
        "128+64 x1Source24.62050",
        "the export has 2.0000 nats per token",
        "gguf:f1614.70 GB16.002.0020+0.10 %llama.cpp",
        "gguf:q4_k_mimportance matrix44.0 MB4.852.0200+1.00 %llama.cpp",
        "pl<apt4>32,0002.502.751.629007",
        "unnamedsource32,1282.50",
        "distill30 min 00 s4.0010.00",
        "Total1 h 34 min6.0015.00",
        "Bits per byte, languageSource",
        " it <u>goes</u>",
    ):
        assert said in reader.text, said
    assert not {"i", "u", "dyk", "cpu", "apt4"} & reader.tags
    assert OTHER not in html and "None" not in html and "nan" not in html.lower()


def test_every_plot_has_a_name_and_an_id_of_its_own(run_dir):
    html = page(report.collect(run_dir))
    titles = [plot.split("<title>")[1].split("<")[0] for plot in html.split("<svg ")[1:]]
    assert [title.split(":")[0] for title in titles] == [
        "Held-out loss by model",
        "Bits per byte by model",
        "KL from the source by model",
        "Top-1 agreement by model",
        "Benchmarks by model",
        "Kept by Distilled, best first",
        "Tokens per second of each load and model",
        "Change of the loss by size",
        "Tokens per word by tokenizer and language",
    ]
    assert len(set(titles)) == len(titles)
    assert titles[5].endswith("&lt;dyk&gt; 98.0 %, within noise; polemo2 75.0 %, lost")
    assert ">within noise (1)<" in html and ">lost (1)<" in html and ">limit by memory bandwidth<" in html


def test_areas_of_the_drawing_are_numbers_of_parameters():
    """Hidden 8, 2 heads of 4 in 1 group: attention 2 * 8 * 8 + 2 * 8 * 4 = 192, FFN 3 * 8 * 16 = 384, 8 * 10 words."""
    shape = {"num_layers": 3, "hidden_size": 8, "ffn_hidden_size": 16, "num_attention_heads": 2}
    shape |= {"num_query_groups": 1, "head_dim": 4, "vocab_size": 10, "tie_embeddings": True}
    assert _parts(shape) == (192, 384, 80)
    every = Architecture(**shape).num_parameters()
    assert every == 3 * (192 + 384 + 2 * 8) + 80 + 8  # with the norms, which the drawing leaves out
    cut = anatomy(shape, shape | {"num_layers": 2}, [1])
    assert ">dropped<" in cut and ">before: 3 layers of 576 parameters<" in cut and ">after: 2 layers of 576" in cut
    assert ">dropped<" not in anatomy(shape, shape | {"ffn_hidden_size": 8}, [])
    # One matrix of words on the left of each row, and one more on the right where they are not tied.
    tied, untied = (anatomy(shape | {"tie_embeddings": both}, shape, []) for both in (True, False))
    boxes = [len(re.findall(r'<path [^>]+ style="fill: var\(--muted\)"', drawing)) for drawing in (tied, untied)]
    assert boxes[1] == boxes[0] + 1


def test_terminal_fits_80_columns(run_dir):
    text = shown(report.collect(run_dir))
    assert max(map(len, text.splitlines())) <= 80
    cells = [line.split() for line in text.splitlines()]
    assert ["<dyk>", "0.500", "0.490", "98.0", "%", "(96.0", "to", "100.0)", "within", "noise"] in cells
    assert ["128+64", "x1", "export", "27.3", "12.5", "80", "100", "13.8", "1.60", "(1.50)"] in cells
    assert ["gguf:q4_k_m", "44.0", "MB", "4.85", "2.0200", "+1.00", "%", "llama.cpp"] in cells
    assert ["pl", "<apt4>", "32,000", "2.50", "2.75", "1.62"] in cells
    assert ["sft", "3,600.0", "1", "h", "00", "min", "2.00", "5.00"] in cells


@pytest.mark.parametrize("stage", ["benchmark", "quantize", "tokenizers"])
def test_what_is_missing_is_left_out(run_dir, stage):
    heading = {"benchmark": "Speed", "quantize": "Formats", "tokenizers": "Tokenizers"}[stage]
    assert f"<h2>{heading}</h2>" in page(report.collect(run_dir))
    (run_dir / stage / "metrics.json").unlink()
    numbers = report.collect(run_dir)
    assert f"<h2>{heading}</h2>" not in page(numbers) and "None" not in page(numbers) + shown(numbers)


def test_no_number_of_a_point_is_guessed(run_dir):
    """A load without a limit, a format without a loss, a task without an interval: empty cells."""
    bare = {"model": "source"} | LOAD | {"tokens_per_second": 50.0}
    put(run_dir / "benchmark" / "metrics.json", {"points": [bare]})
    put(run_dir / "quantize" / "metrics.json", {"formats": [{"name": "fp8"}]})
    task = {"models": {"source": {"value": 0.5}, "sft": {"value": None}}, "recovery": {"sft": {"value": None}}}
    put(run_dir / "evaluate" / "metrics.json", {"benchmarks": {"tasks": {"t": task}}})
    numbers = report.collect(run_dir)
    html = page(numbers)
    assert "None" not in html + shown(numbers) and "kept, best first" not in html
    assert "limit by memory" not in html and "Change of the loss" not in html


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("evaluate", {"bits_per_byte": {"sft": "1"}}, r"bits_per_byte\.sft: found '1', allowed: a number"),
        ("evaluate", {"agreement": {"sft": {"kl": "1"}}}, r"agreement\.sft\.kl: found '1'"),
        ("evaluate", {"benchmarks": [1]}, r"metrics\.json: benchmarks: found \[1\], allowed: an object"),
        ("evaluate", {"benchmarks": {"tasks": {"t": {"samples": "9"}}}}, r"benchmarks\.tasks\.t\.samples: found '9'"),
        (
            "evaluate",
            {"benchmarks": {"mean": {"sft": {"verdict": "good"}}}},
            r"mean\.sft\.verdict: found 'good'",
        ),
        ("evaluate", {"benchmarks": {"groups": {"g": {"sft": {"value": "1"}}}}}, r"groups\.g\.sft\.value: found '1'"),
        ("benchmark", {"points": [LOAD]}, r"points\[0\]\.model: found nothing"),
        ("benchmark", {"points": [{"model": "a", **LOAD, "ttft_ms": "1"}]}, r"points\[0\]\.ttft_ms: found '1'"),
        ("benchmark", {"points": 3}, r"points: found 3, allowed: a list of points"),
        ("quantize", {"formats": [{"name": 4}]}, r"formats\[0\]\.name: found 4, allowed: text"),
        ("quantize", {"formats": [{"bytes": "4"}]}, r"formats\[0\]\.bytes: found '4'"),
        ("tokenizers", {"tokenizers": {"a": 1}}, r"tokenizers: found .* allowed: an object of objects"),
        ("tokenizers", {"tokenizers": {"a": {"languages": {"pl": {"tokens": "1"}}}}}, r"a\.languages\.pl\.tokens: fou"),
    ],
)
def test_damaged_files_are_one_error(run_dir, file, content, message):
    put(run_dir / file / "metrics.json", content)
    with pytest.raises(DataError, match=message):
        report.collect(run_dir)
