"""Models in turns: who is asked when, what the numbers say, and real ones in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from bielik_nemo.architecture import Architecture
from bielik_nemo.config_outcome import Benchmark, Point
from bielik_nemo.engine import speed
from bielik_nemo.engine.speed_process import Process, Timing
from bielik_nemo.errors import UserError

POINT = Point(input_tokens=8, output_tokens=5, concurrency=2)
STUDENT = [Timing(0.3, 0.7, 2**29), Timing(0.2, 1.4, 2**30), Timing(0.1, 0.5, 2**28)]
TEACHER = [Timing(0.4, 1.4, 2**31), Timing(0.6, 2.6, 2**31), Timing(0.5, 1.3, 2**31)]
SHAPE = Architecture(2, 64, 96, 4, 2, 16, 263, tie_embeddings=False)


def test_a_row_by_hand():
    """Four steps follow the first token: 0.1, 0.3 and 0.1 s each; 10 tokens in 0.7, 1.4 and 0.5 s; the most memory.

    A layer has 64 * (2 * 64 + 2 * 32) + 3 * 64 * 96 + 2 * 64 = 30,848 weights, the rest 64 + 263 * 64 = 16,896: 78,592,
    of 4 bytes: 314,368. Steps see 9, 10, 11 and 12 tokens, 10.5, and write one; a token's keys and values are
    2 * 2 * 2 * 16 * 4 = 512 bytes, its row of the embedding 256: 2 * (11.5 * 512 + 256) = 12,288 for both answers.
    326,656 bytes at 0.001 GB/s (1e6 bytes a second) are 326.656 ms.
    """
    assert speed.row("student", POINT, STUDENT, SHAPE, 4, 0.001) == {
        "model": "student",
        "input_tokens": 8,
        "output_tokens": 5,
        "concurrency": 2,
        "ttft_ms": pytest.approx(200),
        "tpot_ms": pytest.approx(100),
        "tokens_per_second": pytest.approx(10 / 0.7),
        "peak_memory_gib": 1.0,
        "limit_tpot_ms": pytest.approx(326.656),
        "limit_tokens_per_second": pytest.approx(2000 / 326.656),
        "bytes_per_token": 326_656 / 2,
    }


def test_a_ratio_is_the_median_over_the_turns():
    """Totals 1.4 / 0.7, 2.6 / 1.4, 1.3 / 0.5: 2; steps 0.25 / 0.1, 0.5 / 0.3, 0.2 / 0.1: 2; limits 3 / 2."""
    found = speed.ratio(
        {"model": "student", "input_tokens": 8, "output_tokens": 5, "concurrency": 2, "limit_tpot_ms": 2.0},
        {"model": "source", "limit_tpot_ms": 3.0},
        {"source": TEACHER, "student": STUDENT},
    )
    assert found == {
        "model": "student",
        "input_tokens": 8,
        "output_tokens": 5,
        "concurrency": 2,
        "speedup": pytest.approx(2.0),
        "decode_speedup": pytest.approx(2.0),
        "limit_speedup": 1.5,
    }


def test_models_take_turns_and_the_first_turn_does_not_count(monkeypatch, random_hf, tmp_path: Path):
    """Warm-up takes 100 s, the others 2 s and 1 s: answers of 3 tokens are 1.5 and 3 tokens a second."""
    asked: list[tuple] = []

    class StandIn(Process):
        def __init__(self, name, engine, directory, dtype, loads, log):
            self.name = name
            assert (engine, dtype, loads) == ("transformers", "float32", [(7, 1), (5, 1)])

        def measure(self, point, prompts):
            asked.append((self.name, point.input_tokens, prompts))
            turn = sum(each[:2] == asked[-1][:2] for each in asked)
            return Timing(0.5, 100.0 if turn == 1 else 2.0 if self.name == "source" else 1.0, 2**30)

        def __exit__(self, *error):
            asked.append(("closed", self.name))

    monkeypatch.setattr(speed, "Process", StandIn)
    settings = Benchmark(points=[Point(4, 3), Point(2, 3)], repeats=2, bandwidth_gb_s=10.0)
    told: list[str] = []
    models = {"source": random_hf("sharded"), "pruned": random_hf("llama_student")}
    found = speed.compare(models, settings, "float32", tmp_path / "log.txt", told.append, seed=1)
    turns = ["source", "pruned", "pruned", "source", "source", "pruned"]
    assert [each[0] for each in asked] == [*turns, *turns, "closed", "closed"]
    assert sorted(each[1] for each in asked[-2:]) == ["pruned", "source"]
    assert [(row["model"], row["input_tokens"], row["tokens_per_second"]) for row in found["points"]] == [
        ("source", 4, 1.5),
        ("pruned", 4, 3.0),
        ("source", 2, 1.5),
        ("pruned", 2, 3.0),
    ]
    assert [(each["model"], each["speedup"]) for each in found["ratios"]] == [("pruned", 2.0)] * 2
    assert found["bandwidth_gb_s"] == 10 and len(told) == 12
    prompts = asked[0][2]
    assert all(each[2] == prompts for each in asked[:6]) and prompts != asked[6][2]
    assert [len(ids) for ids in prompts] == [4] and max(prompts[0]) < 256  # the smaller vocabulary


def test_real_models_are_measured_in_processes_of_their_own(random_hf, tmp_path: Path):
    """Memory counts the weights: more than 2 * 32,000 numbers. A model that is not there is one line."""
    settings = Benchmark(points=[Point(6, 3, 2)], repeats=1, bandwidth_gb_s=10.0)
    models = {"source": random_hf("llama"), "pruned": random_hf("llama_student")}
    found = speed.compare(models, settings, "float32", tmp_path / "log.txt", lambda text: None, seed=1)
    assert [row["model"] for row in found["points"]] == ["source", "pruned"]
    for row in found["points"]:
        assert row["ttft_ms"] > 0 and row["tpot_ms"] > row["limit_tpot_ms"]
        assert row["peak_memory_gib"] * 2**30 > 4 * 64_000
    assert found["engine"] == "transformers" and found["dtype"] == "float32"
    with pytest.raises(
        UserError, match=r"^benchmark: the process of b ended \(exit status 1\) at loading: .*log\.txt$"
    ):
        Process("b", "transformers", tmp_path, "float32", [], tmp_path / "log.txt")
    assert "config.json" in (tmp_path / "log.txt").read_text()
