"""The report of a made-up run, small enough to be worked out by hand.

Architecture, untied: hidden 8, 2 heads of 4 in 1 group, vocabulary 10. A layer has Q and output of
2 * 8 * 8 = 128, K and V of 2 * 8 * 4 = 64, norms of 16, and an FFN of 3 * 8 * ffn.
source: 2 layers, ffn 16: 2 * (128 + 64 + 16 + 384) + 8 + 2 * 80 = 1352; one embedding matrix less: 1272
target: 1 layer,  ffn 12: 1 * (128 + 64 + 16 + 288) + 8 + 2 * 80 = 664; one embedding matrix less: 584
Held-out loss 2.0 -> 4.0 -> 2.5: the gap is 2.0, of which 1.5 was closed: 0.75.
"""

import errno
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from html import escape
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from rich.console import Console

from bielik_nemo import report
from bielik_nemo.architecture import Architecture
from bielik_nemo.errors import DataError
from bielik_nemo.report import words
from bielik_nemo.report.page import page
from bielik_nemo.report.plots import ranks, refits, spread
from bielik_nemo.report.quality import gap_closed
from bielik_nemo.report.style import PALETTE

PROMPT = "Run <script>alert('x')</script> & \"wait\"\n\tthen"
SAMPLE = {"prompt": PROMPT, "source": " <b>yes</b>", "pruned": " no\n\n  no", "distilled": " yes"}
STAGES = {
    "import_hf": 1.5,
    "data": 2.0,
    "score": 3.0,
    "prune": 4.0,
    "distill": 70.0,
    "export": 5.0,
    "evaluate": 6.0,
}


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def run_dir(tmp_path):
    run = tmp_path / "runs" / "toy"
    for stage, seconds in STAGES.items():
        put(
            run / stage / "manifest.json",
            {"stage": stage, "seconds": seconds, "packages": {"torch": "2.13.0"}},
        )
    source = Architecture(2, 8, 16, 2, 1, 4, 10, False)
    put(run / "import_hf" / "architecture.json", asdict(source))
    put(run / "prune" / "architecture.json", asdict(replace(source, num_layers=1, ffn_hidden_size=12)))
    put(run / "score" / "importance.json", {"layers": [0.5, 0.25], "tokens": 64})
    put(run / "prune" / "pruned.json", {"kept_layers": [0], "dropped_layers": [1]})
    training = [
        {"step": step, "loss": 2.0 / step, "lr": 1e-4, "grad_norm": 1.0, "tokens": 64 * step} for step in (1, 2, 3)
    ]
    put(run / "distill" / "metrics.jsonl", lines({"step": 0, "held_out_loss": 4.0}, *training))
    loss = {"source": 2.0, "pruned": 4.0, "distilled": 2.5}
    perplexity = {"source": 7.389, "pruned": 54.598, "distilled": 12.182}
    put(
        run / "evaluate" / "metrics.json",
        {"held_out_loss": loss, "perplexity": perplexity, "tokens": 4096, "samples": [SAMPLE]},
    )
    put(run / "export" / "parity.json", {"max_abs_logit_diff": 3e-6, "tolerance": 1e-4, "tokens": 512})
    return run


class Reader(HTMLParser):
    """What a browser would see: tags, attributes, text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def shown(numbers, encoding="utf-8"):
    """What an 80-column terminal without colour gets."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=80).print(report.table(numbers))
    file.flush()
    return file.buffer.getvalue().decode(encoding)


def test_numbers_are_those_worked_out_by_hand(run_dir):
    html = report.write(run_dir)
    numbers = json.loads((run_dir / "report.json").read_text())
    assert html == run_dir / "report.html" and html.is_file()
    assert numbers == report.collect(run_dir)
    assert numbers["run"] == "toy"
    assert numbers["parameters"] == {"source": 1352, "target": 664, "source_once": 1272, "target_once": 584}
    assert numbers["architecture"]["source"]["ffn_hidden_size"] == 16
    assert numbers["architecture"]["target"]["num_layers"] == 1
    assert numbers["held_out_loss"] == {"source": 2.0, "pruned": 4.0, "distilled": 2.5}
    assert numbers["perplexity"]["pruned"] == 54.598
    assert numbers["held_out_tokens"] == 4096
    assert numbers["gap_closed"] == 0.75
    assert numbers["parity"] == {"max_abs_logit_diff": 3e-6, "tolerance": 1e-4, "tokens": 512}
    assert list(numbers["seconds"].items()) == list(STAGES.items())  # in the order of the pipeline
    assert numbers["layers"] == {"importance": [0.5, 0.25], "dropped": [1]}
    assert numbers["samples"] == [SAMPLE]
    assert [row["step"] for row in numbers["curve"]["training"]] == [1, 2, 3]
    assert numbers["curve"]["validation"] == [{"step": 0, "held_out_loss": 4.0}]
    assert numbers["packages"] == {"torch": "2.13.0"}


def test_bytes_that_a_cached_teacher_took(run_dir):
    assert "teacher_cache" not in report.collect(run_dir)
    taken = {"tokens": 3072, "bytes_per_token": 22.34, "teacher_loss": 2.5}
    put(run_dir / "teacher" / "manifest.json", {"stage": "teacher", "seconds": 1.0, "metrics": taken})
    numbers = report.collect(run_dir)
    assert numbers["teacher_cache"] == {"tokens": 3072, "bytes_per_token": 22.34}
    assert "22.3 bytesper token, of 3,072 tokens" in Reader(page(numbers)).text
    put(run_dir / "teacher" / "manifest.json", {"stage": "teacher", "metrics": {"tokens": "many"}})
    with pytest.raises(DataError, match=r"teacher/manifest\.json: metrics\.tokens: found 'many', allowed: a number"):
        report.collect(run_dir)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("block_influence", "Block Influence: how far a layer turns"),
        ("loss_increase", "By how much the loss on calibration text rises without the layer"),
        ("contiguous_block", "chosen by the loss without each block of layers"),
    ],
)
def test_importance_is_called_what_it_is(run_dir, method, words):
    put(run_dir / "score" / "importance.json", {"layers": [0.5, 0.25], "method": method})
    found = report.collect(run_dir)
    assert found["layers"]["method"] == method
    assert words in page(found)
    assert ("Block Influence" in page(found)) == (method != "loss_increase")


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ({"source": 2.0, "pruned": 4.0, "distilled": 4.5}, -0.25),  # distillation did harm: not hidden
        ({"source": 2.0, "pruned": 4.0, "distilled": 1.5}, 1.25),
        ({"source": 2.0, "pruned": 2.0, "distilled": 1.9}, None),  # pruning cost nothing: no gap
        ({"source": 2.0, "pruned": 4.0}, None),
    ],
)
def test_gap_closed(loss, expected):
    assert gap_closed(loss) == expected


@pytest.mark.parametrize(
    ("file", "keys", "heading"),
    [
        ("import_hf/architecture.json", {"parameters.source", "architecture.source"}, None),
        ("prune/architecture.json", {"parameters.target", "architecture.target"}, None),
        ("score/importance.json", {"layers.importance"}, "Importance of each layer"),
        ("prune/pruned.json", {"layers.dropped"}, None),
        ("distill/metrics.jsonl", {"curve"}, "Distillation"),
        (
            "evaluate/metrics.json",
            {"held_out_loss", "perplexity", "gap_closed", "samples"},
            "How they continue",
        ),
        ("export/parity.json", {"parity"}, "Parity of the export"),
        ("score/manifest.json", {"seconds.score"}, None),
    ],
)
def test_what_is_missing_is_left_out(run_dir, file, keys, heading):
    """Each key is there with the file and gone without it, as is the section that shows it."""
    full, full_page = report.collect(run_dir), page(report.collect(run_dir))
    (run_dir / file).unlink()
    part = report.collect(run_dir)
    for key in keys:
        for numbers, there in ((full, True), (part, False)):
            top, _, inner = key.partition(".")
            assert (inner in numbers.get(top, {}) if inner else top in numbers) is there, key
    assert "None" not in page(part) + shown(part) and "nan" not in shown(part)
    if heading:
        assert heading in full_page and heading not in page(part)


def test_a_run_that_has_only_begun(tmp_path):
    assert report.collect(tmp_path) == {"run": tmp_path.name}
    assert "No stage has finished yet" in report.write(tmp_path).read_text()
    assert "No stage of this run has finished yet." in shown(report.collect(tmp_path))
    with pytest.raises(DataError, match="is not a run directory"):
        report.write(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("evaluate/metrics.json", '{\n"tokens": 1,,}', r"metrics\.json: line 2: not valid JSON"),
        ("evaluate/metrics.json", "", r"metrics\.json: line 1: not valid JSON"),
        ("evaluate/metrics.json", "[1]", r"line 1: found list, allowed: a JSON object"),
        (
            "evaluate/metrics.json",
            {"held_out_loss": {"source": "2.0"}},
            r"held_out_loss\.source: found '2\.0'",
        ),
        ("evaluate/metrics.json", {"perplexity": [7.4]}, r"perplexity: found \[7\.4\]"),
        ("evaluate/metrics.json", {"held_out_loss_by_language": [1]}, r"by_language: found \[1\], allowed: an object"),
        (
            "evaluate/metrics.json",
            {"held_out_loss_by_language": {"pruned": {"pl": "3"}}},
            r"held_out_loss_by_language\.pruned\.pl: found '3', allowed: a number",
        ),
        ("evaluate/metrics.json", {"held_out_loss_by_language": {"pruned": 3}}, r"by_language\.pruned: found 3"),
        ("evaluate/metrics.json", {"samples": ["text"]}, r"samples: found \['text'\]"),
        ("export/parity.json", {"tolerance": True}, r"parity\.json: tolerance: found True"),
        ("score/importance.json", {"layers": "high"}, r"importance\.json: layers: found 'high'"),
        ("prune/pruned.json", {"dropped_layers": [1.5]}, r"pruned\.json: dropped_layers: found \[1\.5\]"),
        ("data/manifest.json", '{"seconds": 1', r"data/manifest\.json: line 1: not valid JSON"),
        ("data/manifest.json", {"packages": ["torch"]}, r"packages: found \['torch'\]"),
        ("prune/architecture.json", "{\n\n?", r"prune/architecture\.json: line 3: not valid JSON"),
        ("prune/architecture.json", {"num_layers": 1}, r"prune/architecture\.json: .*missing.*'hidden_size'"),
        (
            "distill/metrics.jsonl",
            '{"step": 1}\n{"step"\n{"step": 3}\n',
            r"metrics\.jsonl: line 2: not valid JSON",
        ),
        ("distill/metrics.jsonl", '{"step": 1}\n{"step"\n', r"metrics\.jsonl: line 2: not valid JSON"),
        ("distill/metrics.jsonl", '{"loss": 1}\n', r"line 1: step: found nothing"),
        ("distill/metrics.jsonl", '{"step": 1}\n{"step": 2, "loss": "low"}\n', r"line 2: loss: found 'low'"),
    ],
)
def test_damaged_file_is_one_error_and_leaves_the_old_report(run_dir, file, text, message):
    before = report.write(run_dir).read_bytes()
    put(run_dir / file, text)
    with pytest.raises(DataError, match=message):
        report.write(run_dir)
    assert (run_dir / "report.html").read_bytes() == before


def test_other_phases_have_curves_of_their_own(run_dir):
    losses = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.25}]
    held_out = [{"step": 0, "held_out_loss": 3.0}, {"step": 2, "held_out_loss": 2.0}]
    for stage in ("pretrain", "distill_long"):
        put(run_dir / stage / "metrics.jsonl", lines(*held_out, *losses))
    numbers = report.collect(run_dir)
    for curve in ("pretraining", "curve_long"):
        assert [row["loss"] for row in numbers[curve]["training"]] == [2.5, 2.25]
    text = Reader(page(numbers)).text
    assert "Continued pre-training" in text and "Cross-entropy of the source, held-out text" in text
    assert "Distillation at a longer context" in text and "Loss at a longer context, held-out text" in text
    ids = [value for name, value in Reader(page(numbers)).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_text_that_was_trained_on(run_dir):
    row = {"name": "<b>pl</b>", "language": "pl", "share": 0.75, "samples": 3, "tokens": 1536, "epochs": 4.25}
    put(run_dir / "distill" / "blend.json", {"sources": [row, row | {"name": "en.txt", "share": 0.25}]})
    numbers = report.collect(run_dir)
    assert numbers["blend"]["distill"][0] == row
    text = Reader(page(numbers)).text
    assert "<b>pl</b>pldistill1,5364.2575" in text.replace(" ", "").replace("\n", "") and "en.txt" in text
    put(run_dir / "distill" / "blend.json", {"sources": [row | {"epochs": "many"}]})
    with pytest.raises(DataError, match=r"blend.json: sources\[0\].epochs: found 'many', allowed: a number"):
        report.collect(run_dir)


def test_losses_by_language_stand_beside_their_means(run_dir):
    """The page has a row for each language and a column for each model; without them it says nothing of languages."""
    numbers = report.collect(run_dir)
    assert "held_out_loss_by_language" not in numbers and "Language" not in page(numbers)
    path = run_dir / "evaluate" / "metrics.json"
    by_language = {
        "source": {"<en>": 1.5, "pl": 2.5},
        "pruned": {"<en>": 3.25, "pl": float("nan")},
        "distilled": {"<en>": 2.0, "pl": 3.0},
    }
    put(path, json.loads(path.read_text()) | {"held_out_loss_by_language": by_language})
    numbers = report.collect(run_dir)
    assert numbers["held_out_loss_by_language"] == by_language | {"pruned": {"<en>": 3.25}}
    html = page(numbers)
    row = html[html.index("&lt;en&gt;") :].split("</tr>")[0]
    assert [value for value in ("1.500", "3.250", "2.000") if f">{value}<" not in row] == []
    assert "nan" not in html and "<en>" not in html


ERRORS = {
    "10.ffn": {"before": 0.5, "after": 0.25},
    "2.ffn": {"before": 0.25, "after": float("nan")},
    "2.attention": {"before": 1.0, "after": 0.125},
}


@pytest.mark.parametrize("errors", [None, {}])
def test_a_cut_without_refits_says_nothing_of_compensation(run_dir, errors):
    path = run_dir / "prune" / "pruned.json"
    if errors is not None:
        put(path, json.loads(path.read_text()) | {"squared_errors": errors})
    numbers = report.collect(run_dir)
    assert "compensation" not in numbers and "Compensation" not in page(numbers)


def test_errors_of_the_refits_are_told_by_layer(run_dir):
    """Layers rise as numbers do (10 after 2); what is not finite is null, and no bar."""
    path = run_dir / "prune" / "pruned.json"
    put(path, json.loads(path.read_text()) | {"squared_errors": ERRORS})
    report.write(run_dir)
    numbers = json.loads((run_dir / "report.json").read_text(), parse_constant=pytest.fail)
    assert numbers["compensation"] == {
        "attention": [{"layer": 2, "before": 1.0, "after": 0.125}],
        "ffn": [{"layer": 2, "before": 0.25, "after": None}, {"layer": 10, "before": 0.5, "after": 0.25}],
    }
    part = page(numbers).split("<h2>Compensation</h2>")[1].split("</section>")[0]
    assert "before and after the refit: attention of 1 layers, FFN of 2 layers</title>" in part
    for label in ("attention before", "attention after", "FFN before", "FFN after"):
        assert part.count(f">{label}<") == 1
    assert not any(colour in part for pair in PALETTE.values() for colour in pair)
    assert "None" not in part and "nan" not in part.lower()


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        ([1], r"squared_errors: found \[1\], allowed: an object of objects"),
        ({"0.mlp": {}}, r"squared_errors: found '0\.mlp', allowed: <layer>\.attention, <layer>\.ffn"),
        ({"x.ffn": {}}, r"squared_errors: found 'x\.ffn', allowed: <layer>\."),
        ({"0.ffn": 3}, r"squared_errors\.0\.ffn: found 3, allowed: an object of numbers"),
        ({"0.ffn": {"before": "1", "after": 0.5}}, r"squared_errors\.0\.ffn\.before: found '1', allowed: a number"),
        ({"0.ffn": {"before": 1}}, r"squared_errors\.0\.ffn\.after: found nothing, allowed: a number"),
    ],
)
def test_damaged_errors_of_the_refits_are_one_error(run_dir, errors, message):
    put(run_dir / "prune" / "pruned.json", {"squared_errors": errors})
    with pytest.raises(DataError, match=r"pruned\.json: " + message):
        report.collect(run_dir)


def bars(svg, role):
    """(left, height, whether it is pale) of each bar of this colour, in the order in which they are drawn."""
    found = re.findall(r'<path d="([^"]+)" clip-path="[^"]+" style="([^"]+)"', svg)
    corners = [(re.findall(r"[-\d.]+", path), style) for path, style in found if f"fill: var(--{role})" in style]
    return [(float(c[0]), float(c[1]) - float(c[5]), "opacity" in style) for c, style in corners]


def test_bars_of_the_refits_stand_side_by_side_and_after_in_front_of_before():
    """One layer: attention falls from 1 to 1/4, its FFN from 1/2 to 1/8 and stands to the right of it."""
    rows = {
        "attention": [{"layer": 3, "before": 1.0, "after": 0.25}],
        "ffn": [{"layer": 3, "before": 0.5, "after": 0.125}],
    }
    svg = refits(rows)
    (left, full, pale), (again, quarter, solid) = bars(svg, "source")
    (right, half, _), (_, eighth, _) = bars(svg, "distilled")
    assert left == again < right and pale and not solid
    assert [height / full for height in (quarter, half, eighth)] == pytest.approx([0.25, 0.5, 0.125], abs=1e-4)


def test_text_that_is_not_utf8_is_named_by_line(run_dir):
    (run_dir / "export" / "parity.json").write_bytes(b'{\n"tokens":\n"\xff"}')
    with pytest.raises(DataError, match=r"parity\.json: line 3: found a byte that is not UTF-8"):
        report.collect(run_dir)


def test_metrics_of_a_run_that_was_killed_and_resumed(run_dir):
    """The half-written last line is left out; of step 2, done again after the resume, the second counts."""
    first, second, again = ({"step": step, "loss": loss} for step, loss in ((1, 9.0), (2, 8.0), (2, 7.0)))
    put(run_dir / "distill" / "metrics.jsonl", lines(first, second, again) + '{"step": 3, "lo')
    assert report.collect(run_dir)["curve"] == {"training": [first, again]}


def test_nan_is_null_in_json_and_a_gap_in_the_curve(run_dir):
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": 0.5}]
    put(run_dir / "distill" / "metrics.jsonl", lines(*rows))
    put(run_dir / "evaluate" / "metrics.json", {"held_out_loss": {"source": 2.0, "pruned": float("inf")}})
    report.write(run_dir)
    numbers = json.loads((run_dir / "report.json").read_text(), parse_constant=pytest.fail)
    assert [row["loss"] for row in numbers["curve"]["training"]] == [1.0, None, 0.5]
    assert numbers["held_out_loss"] == {"source": 2.0}


def test_text_of_the_run_is_escaped_and_kept_to_the_letter(run_dir):
    put(run_dir / "score" / "manifest.json", {"seconds": 1, "packages": {"<i>odd</i>": "<1>"}})
    html = report.write(run_dir.rename(run_dir.with_name("<u>&toy"))).read_text()
    reader = Reader(html)
    assert not {"script", "i", "u"} & set(reader.tags)
    assert all(f'dir="auto">{escape(text)}</p>' in html for text in SAMPLE.values())
    assert all(text in reader.text for text in (*SAMPLE.values(), "<i>odd</i> <1>", "<u>&toy"))


def test_page_loads_nothing_and_repeats_no_id(run_dir):
    html = report.write(run_dir).read_text()
    reader = Reader(html)
    links = [value for name, value in reader.attributes if name in ("src", "href", "xlink:href")]
    assert all(link.startswith("#") for link in links)
    assert "://" not in html and "@import" not in html
    assert html.count("url(") == html.count("url(#")
    assert not {"link", "img", "iframe", "object", "script"} & set(reader.tags)
    ids = [value for name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids)) and all(link[1:] in ids for link in links)


def test_plots_are_named_and_take_the_page_colours(run_dir):
    """Six plots (KL, held-out loss, learning rate, gradient norm, shapes, layers), no fixed colour in any."""
    html = page(report.collect(run_dir))
    plots = html.split("<svg ")[1:]
    assert len(plots) == 6
    assert [plot.split("<title>")[1].split("<")[0] for plot in plots] == [
        "KL divergence from the teacher, nats per token, by step",
        "Held-out loss, nats per token, by step",
        "Learning rate, by step",
        "Gradient norm, by step",
        "The shape before and after, with 2 and 1 layers",
        "Importance of each of 2 layers; dropped: 1",
    ]
    for plot in plots:
        svg = plot.split("</svg>")[0]
        assert 'role="img"' in svg and "var(--" in svg
        assert not any(colour in svg for pair in PALETTE.values() for colour in pair)
    assert "prefers-color-scheme: dark" in html
    assert all(f">{label}<" in plots[5] for label in ("kept (1)", "dropped (1)"))
    assert all(f">{label}<" in plots[1] for label in ("source 2.000", "pruned 4.000"))


def test_what_else_was_measured_in_training_is_told(run_dir):
    """Agreement and speed have panels of their own; median 0.4 of the peak; the student of step 2 of 3 was the best."""
    rows = [
        {
            "step": step,
            "loss": 1.0,
            "kl": 1.0,
            "agreement": 0.5 + step / 10,
            "tokens_per_second": 900.0 + step,
            "mfu": step / 5,
        }
        for step in (1, 2, 3)
    ]
    put(run_dir / "distill" / "metrics.jsonl", lines(*rows))
    put(run_dir / "distill" / "manifest.json", {"stage": "distill", "seconds": 1.0, "metrics": {"step": 2}})
    html = page(report.collect(run_dir))
    titles = [plot.split("<title>")[1].split("<")[0] for plot in html.split("<svg ")[1:]]
    assert titles[:3] == [
        "KL divergence from the teacher, nats per token, by step",
        "Agreement, with the teacher on the likeliest token, by step",
        "Tokens per second, by step",
    ]
    assert "3 steps, 902 tokens per second (median), 40.0 % of the GPUs' peak (median)" in html.replace("&#x27;", "'")
    assert "the result is the student of step 2." in html
    for other in ({"kl": 0.5}, {"kl": None}, {}):
        mixed = [{key: value for key, value in row.items() if key != "kl"} | other for row in rows]
        put(run_dir / "distill" / "metrics.jsonl", lines(*mixed))
        assert "<title>Loss, of weighted parts, nats per token, by step</title>" in page(report.collect(run_dir))


def test_page_says_what_became_what(run_dir):
    text = Reader(page(report.collect(run_dir))).text
    for said in (
        "1.4k → 664 parameters",
        "2.000 source → 4.000 pruned → 2.500 distilled",
        "75.0 % of the gap closed",
        "\N{MINUS SIGN}50.9 %",  # 664 / 1352 - 1
        "\N{MINUS SIGN}1 (\N{MINUS SIGN}50.0 %)",  # layers
        "Largest difference of a logit over 512 tokens: 3.0e-06, where 1e-04 is allowed.",
        "3 steps, 192 tokens",
        "1 min 32 s",  # 91.5 s in all, to the even second
        "Dropped: 1.",
        "torch 2.13.0",
    ):
        assert said in text
    assert "1,352" in text and "1,272" in text


def test_same_numbers_same_bytes_and_nothing_global(run_dir):
    import matplotlib

    # A parameter that moves every plot, and that the plots do not set themselves.
    matplotlib.rcParams["xtick.major.pad"], before = 31, matplotlib.rcParams["xtick.major.pad"]
    try:
        strange = page(report.collect(run_dir))
        assert matplotlib.rcParams["xtick.major.pad"] == 31
    finally:
        matplotlib.rcParams["xtick.major.pad"] = before
    assert page(report.collect(run_dir)) == strange


def test_writing_loads_neither_torch_nor_pyplot_and_importing_no_matplotlib(run_dir):
    script = (
        "import sys; from bielik_nemo import report; assert 'matplotlib' not in sys.modules\n"
        f"report.write({str(run_dir)!r})\n"
        "assert 'matplotlib.figure' in sys.modules\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize("fail", ["write", "replace"])
def test_full_disk_leaves_the_old_report_and_no_rubbish(run_dir, monkeypatch, fail):
    report.write(run_dir)
    before = {path: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    put(run_dir / "export" / "parity.json", {"max_abs_logit_diff": 1.0, "tolerance": 1e-4})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pathlib.Path.write_text" if fail == "write" else "os.replace", full)
    with pytest.raises(DataError, match=r"report\.json: cannot be written: No space left on device"):
        report.write(run_dir)
    assert {path: path.read_bytes() for path in run_dir.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_terminal_table_fits_80_columns(run_dir, encoding):
    """The widest case: untied, so both counts, and a perplexity beyond all bounds."""
    numbers = report.collect(run_dir)
    numbers["perplexity"]["pruned"] = 4.2e11
    text = shown(numbers, encoding)
    assert max(map(len, text.splitlines())) <= 80 and "\x1b" not in text
    cells = [line.replace("|", " ").split() for line in text.splitlines()]
    assert ["source", "1.4k", "1.3k", "2.000", "7.39"] in cells
    assert ["pruned", "664", "584", "4.000", "4.20e+11"] in cells
    assert ["distilled", "664", "584", "2.500", "12.18", "75.0", "%"] in cells
    assert ["distill", "70.0", "1", "min", "10", "s"] in cells
    assert ["total", "91.5", "1", "min", "32", "s"] in cells
    assert "export: largest logit difference 3.0e-06 (allowed 1e-04): within tolerance" in text


def test_parity_outside_tolerance_is_shouted(run_dir):
    put(run_dir / "export" / "parity.json", {"max_abs_logit_diff": 2e-4, "tolerance": 1e-4})
    numbers = report.collect(run_dir)
    assert "OUTSIDE TOLERANCE" in shown(numbers)
    assert '<span class="verdict bad">OUTSIDE TOLERANCE</span>' in page(numbers)


def test_packages_that_changed_between_stages_are_all_named(run_dir):
    put(run_dir / "export" / "manifest.json", {"seconds": 1, "packages": {"torch": "2.14.0", "nemo": "2.7.3"}})
    assert report.collect(run_dir)["packages"] == {"nemo": "2.7.3", "torch": "2.13.0, 2.14.0"}


@pytest.mark.parametrize(
    ("spelt", "expected"),
    [
        (words.count(999), "999"),
        (words.count(1000), "1.0k"),
        (words.count(999_960), "1.0M"),
        (words.count(134_515_008), "134.5M"),
        (words.count(999_960_000), "1.00B"),
        (words.count(11_168_796_672), "11.17B"),
        (words.duration(9.44), "9.4 s"),
        (words.duration(59.97), "1 min 00 s"),
        (words.duration(3599.7), "1 h 00 min"),
        (words.duration(11_100), "3 h 05 min"),
        (words.perplexity(12.345), "12.35"),
        (words.perplexity(99_999.0), "99,999.00"),
        (words.perplexity(485_165_195.4), "4.85e+08"),
        (words.change(200, 150), "\N{MINUS SIGN}25.0 %"),
        (words.percent(0.6234), "62.3 %"),
        (words.signed_percent(0.01234), "+1.23 %"),
        (words.signed_percent(-0.01234), "\N{MINUS SIGN}1.23 %"),
        (words.signed_percent(-0.00001), "+0.00 %"),
        (words.gigabytes(99_000_000), "99.0 MB"),
        (words.gigabytes(14_700_000_000), "14.70 GB"),
    ],
)
def test_spelling_of_numbers(spelt, expected):
    assert spelt == expected


def candidate(name, parameters, **ranked):
    sizes = {"num_layers": 1, "hidden_size": 8, "ffn_hidden_size": 12, "num_attention_heads": 2}
    costs = {"parameters": parameters, "parameters_once": parameters - 80, "memory_gib": 0.25, "latency_ms": None}
    return {"name": name, **sizes, **costs, "retained": 0.5, **ranked}


def ranked(pruned, distilled, before, after, **others):
    losses = {"zero_shot_loss": pruned, "distilled_loss": distilled}
    return losses | {"zero_shot_rank": before, "distilled_rank": after} | others


@pytest.fixture
def searched(run_dir):
    """A run with a search: three candidates distilled, of which one diverged, and one that was not tried."""
    languages = {"distilled_loss_by_language": {"<pl>": 2.25, "en": 2.75}}
    rows = [
        candidate("l2-a", 1100, **ranked(3.0, 2.75, 1, 2)),
        candidate("l1-b", 1090, **ranked(3.5, 2.5, 2, 1, **languages)),
        candidate("l1-c", 1080, failed="distill: the loss is nan at step 2"),
        candidate("l1-d<i>", 1070),
    ]
    nearest = [candidate("l2-x", 1200), candidate("l2-y", 1210)]
    found = {
        "space": 48,
        "feasible": 4,
        "budgets": {"max_parameters": 1150.0},
        "embeddings": "all",
        "objective": "parameters",
        "candidates": rows,
        "rejected": {"above max_parameters": {"count": 40, "nearest": nearest}},
        "source_loss": 2.0,
    }
    put(run_dir / "search" / "candidates.json", found)
    put(run_dir / "search" / "manifest.json", {"stage": "search", "seconds": 8.0})
    return run_dir


def test_candidates_are_told_by_their_rank_after_distillation(searched):
    """l1-b was second when pruned and is first when distilled: two of two changed places."""
    numbers = report.collect(searched)
    assert numbers["search"] == json.loads((searched / "search" / "candidates.json").read_text())
    assert list(numbers["seconds"])[3] == "search"
    html = page(numbers)
    part = html[html.index("<h2>Search</h2>") : html.index("<h2>Architecture</h2>")]
    seen = Reader(part)
    assert "4 of 48 shapes fit the budget (parameters 1,150). " in seen.text
    assert "changed the rank of 2 of 2; the best is l1-b, 2nd before it." in seen.text
    rows = ["".join(row.split("</tr>")[0]) for row in part.split("<tr>")[2:]]
    names = [Reader(row).text.split("\n")[0] for row in rows]
    assert [name[:4] for name in names[:5]] == ["not ", "l1-b", "l2-a", "l1-c", "l1-d"]
    for value in ("3.500", ">2<", "2.500", ">1<", "2.250", "2.750", "1.1k"):
        assert value in rows[1], value
    assert "failed" in rows[3] and "2.000" in rows[0]
    assert "svg" in seen.tags and "rank 1: l1-b, 3.500, 2.500; rank 2: l2-a, 3.000, 2.750<" in part
    assert "above max_parameters" in seen.text and "l2-x, l2-y" in seen.text
    assert "<i>" not in part and "&lt;pl&gt;" in part and "None" not in part


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([0.1, 0.5, 0.9], [0.1, 0.5, 0.9]),  # nothing is near
        ([0.5, 0.5, 0.55], [0.5, 0.6, 0.7]),  # pushed up
        ([0.1, 0.95, 1.0], [0.1, 0.9, 1.0]),  # up to 1.05, and back down below the ceiling
        ([1.0] * 10, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),  # all that there is room for
    ],
)
def test_labels_keep_their_distance(heights, expected):
    assert spread(heights, 0.1) == pytest.approx(expected)


@pytest.mark.parametrize("many", [2, 6, 25])
def test_candidates_near_each_other_are_named_without_overlap(many):
    """Text is 7.5 units high: lines of one column are apart by more, whatever their number, and rise with the rank."""
    points = [(f"l{i:02d}", 3.0, 2.5 + 1e-4 * i) for i in range(many)]
    svg = ranks(points, 2.4999)
    named = {text: float(y) for y, text in re.findall(r'([\d.]+)\)">(\d+\. l\d+)<', svg)}
    ys = [named[f"{i + 1}. l{i:02d}"] for i in range(many)]
    assert all(below - above > 8.5 for below, above in pairwise(ys))


@pytest.mark.parametrize(
    ("source", "there"),
    [
        (2.0, True),  # with it 1.5 nats are shown, three times the candidates' 0.5
        (1.99, False),
        (3.2, True),
        (None, False),
    ],
)
def test_the_source_is_a_level_where_it_fits(source, there):
    svg = ranks([("a", 4.0, 3.0), ("b$_1$", 3.0, 3.5)], source)
    assert (f">source {source:.3f}<" in svg if source else ">source" in svg) is there
    assert ">2. b$_1$<" in svg and ">distilled, nats per token<" in svg and ">pruned, nats per token<" in svg


def test_plots_have_one_scale(searched):
    """A wide plot fills the card, a panel half of it: the page shows text of both in one size."""
    path = searched / "prune" / "pruned.json"
    put(path, json.loads(path.read_text()) | {"squared_errors": ERRORS})
    html = page(report.collect(searched))
    plots = re.findall(r'<figure( class="wide")?>(?:<figcaption>.*?</figcaption>)?<svg viewBox="0 0 ([\d.]+) ', html)
    assert [(bool(wide), float(width)) for wide, width in plots] == [(False, 302.4)] * 4 + [(True, 619.2)] * 4


def test_candidates_fit_the_terminal(searched):
    text = shown(report.collect(searched))
    (best,) = [line for line in text.splitlines() if line.startswith(" l1-b ")]
    assert best.split() == ["l1-b", "1.1k", "3.500", "2", "2.500", "1"]
    assert max(map(len, text.splitlines())) <= 80
    assert "(not pruned)" in text and "failed" in text


def test_a_search_without_distillation_tells_what_is_known(searched):
    path = searched / "search" / "candidates.json"
    found = json.loads(path.read_text())
    put(path, found | {"candidates": [candidate("l1-a", 1100), candidate("l1-b", 1090)], "rejected": {}})
    numbers = report.collect(searched)
    part = page(numbers).split("<h2>Search</h2>")[1].split("</section>")[0]
    assert "svg" not in part and "Rank" not in part and "Left out" not in part and "0.500" in part
    assert [line.split() for line in shown(numbers).splitlines() if line.startswith(" l1-a")] == [
        ["l1-a", "1.1k", "0.25", "0.500"]
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": "many"}, r"candidates\.json: space: found 'many', allowed: a number"),
        ({"feasible": None}, r"feasible: found nothing, allowed: a number"),
        ({"budgets": [1]}, r"budgets: found \[1\], allowed: an object of numbers"),
        ({"rejected": {"x": 3}}, r"rejected: found .*, allowed: an object of objects"),
        ({"rejected": {"x": {"count": 1}}}, r"rejected\.x\.nearest: found None, allowed: a list of candidates"),
        ({"candidates": None}, r"candidates: found None, allowed: a list of candidates"),
        ({"candidates": [{"name": "a"}]}, r"candidates\.a\.parameters: found nothing"),
        ({"candidates": [candidate("a", 1, distilled_rank=1)]}, r"candidates\.a\.zero_shot_loss: found nothing"),
    ],
)
def test_a_damaged_search_is_one_error(searched, changes, message):
    path = searched / "search" / "candidates.json"
    put(path, json.loads(path.read_text()) | changes)
    with pytest.raises(DataError, match=message):
        report.write(searched)


def test_ordinals():
    assert [words.ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 22, 101, 111)] == (
        "1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 101st 111th".split()
    )
