from typing import Optional

from bielik_nemo.config import Config, Shape
from bielik_nemo.config_prune import Calibration
from bielik_nemo.keys import build, describe, dotted_keys, nearest, type_at


def test_dotted_keys_go_through_optional_sections():
    keys = dotted_keys(Config)
    assert keys[:4] == ["run", "run.name", "run.dir", "run.seed"]
    assert {"model.shape", "model.shape.head_dim", "prune.target.num_layers", "data.sources"} <= set(keys)
    assert len(keys) == len(set(keys))


def test_type_at():
    assert type_at(Config, "optim.lr") is float
    assert type_at(Config, "model.shape") == Optional[Shape]
    assert type_at(Config, "data.sources.3.path") is type_at(Config, "data.sources[3].path") is str
    assert type_at(Config, "evaluate.prompts[0]") is str
    for unknown in ("optim.lrr", "optim.lr.x", "data.sources.x", "data.sources.0.x", ""):
        assert type_at(Config, unknown) is None


def test_describe():
    assert describe(int) == "an integer"
    assert describe(Optional[int]) == "an integer, or null"
    assert describe(list[str]) == "a list [...], each item text"
    assert describe(Calibration) == "the keys sources, samples, seq_length, batch_size"


def test_nearest_prefers_the_last_part_over_the_whole():
    names = ["optim.lr", "optim.min_lr", "run.name", "cluster.name"]
    assert nearest("lr", names) == nearest("optimizer.lr", names) == "; did you mean optim.lr?"
    assert nearest("optim.minlr", names) == "; did you mean optim.min_lr?"
    assert nearest("name", names) == "; did you mean run.name or cluster.name?"
    assert nearest("clusters.name", names) == "; did you mean cluster.name?"
    assert nearest("zebra", names) == ""


def test_build_lists_every_problem():
    problems: list[str] = []
    value = {"sources": [{"path": 3, "weight": 1}], "samples": 1.0, "batch_size": True, "more": 0}
    assert build(Calibration, value, "calibration", problems) is None
    assert problems == [
        "calibration.more: unknown key",
        "calibration.seq_length: missing",
        "calibration.sources[0].text_key: missing",
        "calibration.sources[0].language: missing",
        "calibration.sources[0].path: found 3, allowed: text",
        "calibration.samples: found 1.0, allowed: an integer",
        "calibration.batch_size: found True, allowed: an integer",
    ]


def test_build_takes_an_integer_for_a_float_only():
    problems: list[str] = []
    assert isinstance(build(float, 1, "x", problems), float)
    assert build(list[str], ["a", 1], "y", problems) == ["a", None]
    assert problems == ["y[1]: found 1, allowed: text"]


def test_names_with_numbers():
    kind, problems = Optional[dict[str, float]], []
    assert build(kind, {"pl": 1, "en": 0.5}, "x", problems) == {"pl": 1.0, "en": 0.5}
    assert build(kind, None, "x", problems) is None and problems == []
    build(kind, {"pl": "much"}, "x", problems)
    assert problems == ["x.pl: found 'much', allowed: a number"]
    assert describe(kind) == "names {...}, each with a number, or null"
    assert type_at(Config, "data.language_weights.pl") is float
