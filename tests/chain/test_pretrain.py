"""The stage `pretrain`: every later stage takes its model for the source, and without it all is as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bielik_nemo.config import CHAIN

PRETRAINED = [*CHAIN[:2], "pretrain", *CHAIN[2:]]
SETTINGS = ("pretrain.max_steps=4", "pretrain.lr=2e-3", "pretrain.min_lr=1e-3", "pretrain.warmup_steps=0")


@pytest.fixture(scope="module")
def pretrained(chain) -> Path:
    """The finished run again, with the stage in it."""
    run_dir = chain.copy("pretrained")
    chain.run(run_dir, *SETTINGS, f"pipeline.stages=[{','.join(PRETRAINED)}]")
    return run_dir


def test_the_pretrained_model_is_scored_and_evaluated(pretrained, chain):
    found = chain.manifest(pretrained, "pretrain").metrics
    before, after = found["held_out_loss_before"], found["held_out_loss"]
    assert before == pytest.approx(chain.manifest(chain.finished, "score").metrics["source_loss"], rel=1e-5)
    assert abs(after - before) > 1e-3  # four steps at a high rate may well have done harm
    assert chain.manifest(pretrained, "score").metrics["source_loss"] == pytest.approx(after, rel=1e-5)
    evaluated = json.loads((pretrained / "evaluate" / "metrics.json").read_text())
    assert evaluated["held_out_loss"]["source"] == pytest.approx(after, rel=1e-5)


def test_what_is_made_of_the_source_is_made_again(pretrained, chain):
    for stage in ("import_hf", "data"):
        assert chain.manifest(pretrained, stage).started == chain.manifest(chain.finished, stage).started
    for stage in CHAIN[2:]:
        assert chain.manifest(pretrained, stage).fingerprint != chain.manifest(chain.finished, stage).fingerprint


def test_without_the_stage_the_earlier_results_are_taken_back(pretrained, chain):
    chain.run(pretrained, stages=["score", "prune"])
    for stage in ("score", "prune"):
        assert chain.manifest(pretrained, stage).started == chain.manifest(chain.finished, stage).started


def test_a_pretrained_model_is_exported(chain):
    """The shortest pipeline: plain transformers loads it, and it predicts what the Megatron model predicts."""
    run_dir = chain.copy("exported", before="score")
    chain.run(run_dir, *SETTINGS, "pipeline.stages=[import_hf,data,pretrain,export]")
    found = chain.manifest(run_dir, "export").metrics
    assert found["model"] == "pretrain" and found["parity"] < 1e-4
    source = Path(chain.config(run_dir).model.source) / "model.safetensors"
    assert (run_dir / "export" / "hf" / "model.safetensors").read_bytes() != source.read_bytes()
