"""What the stages of a finished run say about one another must agree: the same models on the same tokens."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bielik_nemo.engine import datasets


def read(chain, name: str) -> Any:
    return json.loads((chain.finished / name).read_text())


@pytest.fixture(scope="module")
def curve(chain) -> list[dict[str, float]]:
    return [json.loads(line) for line in (chain.finished / "distill" / "metrics.jsonl").read_text().splitlines()]


def test_losses_agree_wherever_they_are_measured(chain, curve):
    evaluated = read(chain, "evaluate/metrics.json")
    losses = evaluated["held_out_loss"]
    held_out = {record["step"]: record["held_out_loss"] for record in curve if "held_out_loss" in record}
    assert list(held_out) == [0, 3, 6]
    assert losses["source"] == pytest.approx(chain.manifest(chain.finished, "score").metrics["source_loss"], rel=1e-6)
    assert losses["pruned"] == pytest.approx(held_out[0], rel=1e-6)
    assert losses["distilled"] == pytest.approx(held_out[6], rel=1e-6)
    assert losses["source"] < losses["distilled"] < losses["pruned"] < math.log(263)
    assert evaluated["perplexity"] == pytest.approx({name: math.exp(loss) for name, loss in losses.items()})
    assert evaluated["tokens"] == 1024


def test_plain_transformers_measures_the_same_losses(chain, tiny_hf: Path):
    """8 blocks of 128 predictions, by code that knows nothing of Megatron."""
    from transformers import AutoModelForCausalLM

    blocks = datasets.blocks(chain.finished / "data" / "held_out" / "text", 128, 1024)
    assert blocks.shape == (8, 129)
    losses = read(chain, "evaluate/metrics.json")["held_out_loss"]
    for name, directory in (("source", tiny_hf), ("distilled", chain.finished / "export" / "hf")):
        model = AutoModelForCausalLM.from_pretrained(directory)
        with torch.no_grad():
            logits = model(blocks[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten())
        assert losses[name] == pytest.approx(loss.item(), abs=1e-5), name


def test_the_best_student_is_the_result_where_it_is_asked_for(chain):
    """Measured after every step, with a learning rate that makes it worse in the end."""
    run_dir = chain.copy("best", before="distill")
    settings = ("trainer.keep_best=true", "trainer.validate_every=1", "optim.warmup_steps=5", "optim.lr=0.02")
    chain.run(run_dir, *settings, "optim.min_lr=0.02", "pipeline.stages=[import_hf,data,score,prune,distill,evaluate]")
    records = [json.loads(line) for line in (run_dir / "distill" / "metrics.jsonl").read_text().splitlines()]
    losses = {r["step"]: r["held_out_loss"] for r in records if r["step"] and "held_out_loss" in r}
    best = min(losses, key=losses.__getitem__)
    assert best < 6 and losses[best] < losses[6] - 0.01
    assert chain.manifest(run_dir, "distill").metrics["step"] == best
    evaluated = json.loads((run_dir / "evaluate" / "metrics.json").read_text())["held_out_loss"]
    assert evaluated["distilled"] == pytest.approx(losses[best], rel=1e-6)
    assert not (run_dir / "distill" / "best").exists()


def test_the_curve_counts_tokens_and_follows_the_schedule(curve):
    """Four sequences of 128 tokens a step. One step of warm-up, then a cosine from 2e-3 to 2e-4 over the five left."""
    steps = [record for record in curve if "loss" in record]
    assert [record["tokens"] for record in steps] == [512 * step for step in range(1, 7)]
    expected = [1e-3] + [2e-4 + 0.5 * (1 + math.cos(math.pi * done / 5)) * 1.8e-3 for done in range(5)]
    assert [record["lr"] for record in steps] == pytest.approx(expected)
    assert all(record["kl"] == record["loss"] and 0 < record["agreement"] < 1 for record in steps)
    seconds = [record["seconds"] for record in curve]
    assert seconds == sorted(seconds) and all(record["tokens_per_second"] > 0 for record in steps)


def test_the_layer_of_least_importance_was_dropped(chain):
    importance, pruned = read(chain, "score/importance.json"), read(chain, "prune/pruned.json")
    assert importance["samples"] == 8 and importance["tokens"] == 8 * 128
    least = min(range(4), key=importance["layers"].__getitem__)
    assert pruned["dropped_layers"] == [least]
    assert pruned["kept_layers"] == [layer for layer in range(4) if layer != least]


def test_architectures_and_parameters(chain):
    """As experiment tiny says: one of four layers goes, and the FFN from 160 to 96."""
    source, target = read(chain, "import_hf/architecture.json"), read(chain, "prune/architecture.json")
    assert read(chain, "distill/architecture.json") == target
    changed = {key: (source[key], target[key]) for key in source if source[key] != target[key]}
    assert changed == {"num_layers": (4, 3), "ffn_hidden_size": (160, 96)}
    parameters = read(chain, "report.json")["parameters"]
    assert (parameters["source"], parameters["target"]) == (255_424, 163_136)


def test_samples_of_all_three_models(chain):
    for sample in read(chain, "evaluate/metrics.json")["samples"]:
        assert set(sample) == {"prompt", "source", "pruned", "distilled"} and sample["prompt"] in (
            "The package ",
            "import ",
        )


def test_the_report_says_what_the_stages_said(chain):
    report = read(chain, "report.json")
    losses = read(chain, "evaluate/metrics.json")["held_out_loss"]
    assert report["held_out_loss"] == losses
    gap = (losses["pruned"] - losses["distilled"]) / (losses["pruned"] - losses["source"])
    assert report["gap_closed"] == pytest.approx(gap)
    assert report["parity"]["max_abs_logit_diff"] == read(chain, "export/parity.json")["max_abs_logit_diff"] <= 1e-4
    for stage in ("import_hf", "distill", "evaluate"):
        assert report["seconds"][stage] == chain.manifest(chain.finished, stage).seconds
