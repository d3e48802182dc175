"""What a run needs of its cluster: hand arithmetic stands beside each number."""

from __future__ import annotations

from pathlib import Path

import pytest

from bielik_nemo import check, preflight
from bielik_nemo.artifacts import Manifest
from bielik_nemo.budget import GIB
from bielik_nemo.budget.ranks import ranks
from bielik_nemo.check import Need, needs, seconds, table
from bielik_nemo.check.layout import Layout, differences
from bielik_nemo.config import Config, compose
from bielik_nemo.errors import ConfigError


def full_size(*overrides: str) -> Config:
    return compose("bielik_minitron_7b", ["cluster=dgx_h200", *overrides])


def of(config: Config) -> dict[str, Need]:
    return {need.job.stage: need for need in needs(preflight.costs(config), config.pipeline.stages)}


def memory_of(config: Config) -> list[str]:
    found = check.findings(config, preflight.costs(config))
    return [f"{each.level}: {each.message}" for each in found if each.key == "cluster.gpu_memory_gib"]


def test_time_of_the_full_size():
    """913.7 GPU-hours on 16 GPUs (tests/budget/test_compute.py): 57.1 hours. In jobs of 24 hours, the last 300 seconds
    of which are for saving, three."""
    found = of(full_size("cluster.time='24:00:00'"))
    distill = found["distill"]
    assert (distill.job.nodes, distill.gpus) == (2, 16)
    assert distill.gpu_hours == pytest.approx(913.7, rel=1e-3) and distill.hours == pytest.approx(57.1, rel=1e-3)
    assert distill.rate == pytest.approx(16_777_216_000 / (57.106 * 3600), rel=1e-3)
    assert distill.attempts == 3
    assert found["data"].memory == {} and found["data"].attempts is None
    assert found["sft"].rate and found["sft"].hours is None  # epochs of nobody knows how many tokens


def test_time_of_epochs_is_known_when_their_data_are_there(tmp_path: Path):
    """3 epochs of a million tokens."""
    (tmp_path / "chat").mkdir()
    Manifest("chat", "", {}, {}, {}, {}, {"train": {"tokens": 10**6}}, "", 1.0).write(tmp_path / "chat")
    found = of(full_size(f"run.dir={tmp_path}"))
    assert found["sft"].hours == pytest.approx(3e6 / found["sft"].rate / 3600)
    assert found["dpo"].hours is None


def test_each_stage_has_its_own_nodes():
    """On half the GPUs twice the hours, and the optimizer is shared by half as many."""
    both, one = of(full_size())["distill"], of(full_size("launch.nodes={distill: 1}"))["distill"]
    assert one.gpus == 8 and one.hours == pytest.approx(2 * both.hours)
    assert one.memory["optimizer"] == 2 * both.memory["optimizer"]


def test_a_layout_over_two_nodes():
    """Scoring takes the 2 pipeline ranks alone, export all 16, distillation 32: 2 copies, which share the optimizer."""
    found = of(full_size("cluster.nodes=4", "parallel.tp=8", "parallel.pp=2"))
    assert {name: found[name].gpus for name in ("score", "export", "distill")} == {
        "score": 2,
        "export": 16,
        "distill": 32,
    }
    trained = found["distill"].memory
    assert trained["optimizer"] == trained["weights"] * 6 / 2


@pytest.mark.parametrize("text, expected", [("00:01:30", 90), ("24:00:00", 86_400), ("2-01:00:00", 176_400)])
def test_seconds(text: str, expected: int):
    assert seconds(text) == expected


@pytest.mark.parametrize(
    "gib, level, end",
    [
        (101, None, ""),  # 90.5 of 101: 89.6 %
        (100, "warning", "and distill needs about 90.5 GiB (estimate, most of it gradients): 91% of it"),
        (90, "error", "but distill needs about 90.5 GiB (estimate, most of it gradients); raise parallel.tp or"),
    ],
)
def test_memory_warns_when_it_is_scarce_and_refuses_what_does_not_fit(gib: int, level: str | None, end: str):
    """90.5 GiB: tests/budget/test_memory.py."""
    config = full_size("pipeline=compress", f"cluster.gpu_memory_gib={gib}")
    found = memory_of(config)
    if level is None:
        assert found == []
    else:
        assert len(found) == 1 and found[0].startswith(f"{level}: cluster.gpu_memory_gib: found {gib}, {end}")


def test_what_does_not_fit_is_not_submitted(tmp_path: Path):
    """A quarter million parameters are nothing beside the 3 GiB that CUDA and NCCL are taken to need."""
    config = compose("tiny", ["pipeline=compress", "cluster.gpu_memory_gib=2", f"run.dir={tmp_path}"])
    with pytest.raises(ConfigError, match=r"^cluster.gpu_memory_gib: found 2, but distill needs about 3.3 GiB"):
        check.require(config, ["distill"])
    config.cluster.gpu_memory_gib = 4
    check.require(config, ["distill"])


def test_a_layout_that_leaves_a_node_half_empty_is_an_error():
    config = full_size("parallel.tp=2", "parallel.pp=5", "cluster.devices_per_node=4", "cluster.nodes=5")
    config.data.global_batch_size = 512
    found = check.findings(config, preflight.costs(config))
    assert any(each.level == "error" and each.key == "cluster.devices_per_node" for each in found)


def test_another_model_than_was_counted_is_told():
    config = full_size()
    costs = preflight.costs(config)
    built = Layout({"source": [[dict(rank) for _ in range(2)] for rank in ranks(costs.source, 2, 2)]}, 0)
    assert list(differences(built, {"source": costs.source}, 2, 2)) == []
    built.models["source"][1][0]["layers"] += 1
    (line,) = differences(built, {"source": costs.source}, 2, 2)
    assert line.startswith("parallel.tp=2, parallel.pp=2: Megatron's source on pipeline rank 1, tensor rank 0 has ")


def test_the_table_says_what_is_exact_estimated_and_measured(tmp_path: Path):
    """A price of 2 makes 1,827 of 913.7 GPU-hours. A finished stage's own numbers stand at the end."""
    (tmp_path / "distill").mkdir()
    metrics = {"peak_memory_gib": 80.0, "tokens_per_second": 70_000}
    Manifest("distill", "", {}, {}, {}, {}, metrics, "", 1.0).write(tmp_path / "distill")
    config = full_size("cluster.price_per_gpu_hour=2", f"run.dir={tmp_path}", "parallel.tp=2", "parallel.pp=2")
    costs = preflight.costs(config)
    every = needs(costs, config.pipeline.stages)
    models = {"source": costs.source, "target": costs.target}
    built = Layout({name: [[rank] * 2 for rank in ranks(each, 2, 2)] for name, each in models.items()}, 0)
    lines = list(table.lines(costs, every, built))
    text = "\n".join(lines)
    assert "target  7,477,727,232 parameters (7,346,130,944 with one embedding matrix)" in text
    assert "distill  16,777,216,000 tokens = 8,000 steps * 512 sequences * 4,096" in text
    assert "sft  3 epochs: its tokens are known once its data are there" in text
    assert "layout  tp 2, pp 2, cp 1, dp 4 on 16 ranks" in text
    assert sum("pipeline rank" in line for line in lines) == 2
    (row,) = [line.split() for line in lines if line.startswith("distill ") and " of " in line and "steps" not in line]
    assert row[1:3] == ["2", "16"] and "1,827" in row and "914" in row
    (parts,) = [line.split() for line in lines if line.startswith("distill ") and "o" not in line]
    assert float(parts[-1]) == pytest.approx(sum(map(float, parts[1:-1])), abs=0.05)
    size = sum(every[4].memory.values()) / GIB
    assert f"measured by distill: 80.00 GiB, estimated {size:.2f} ({size / 80 - 1:+.0%})" in text
    assert "measured by distill: 70,000 tokens/s, estimated 81," in text
    assert max(map(len, lines)) <= 120
