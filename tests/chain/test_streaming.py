"""The chain from a model that was cut by streaming: everything after it is what it is from Model Optimizer's cut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bielik_nemo.artifacts import Manifest
from bielik_nemo.stages import GRAPH

AFTER = ["prune", "distill", "export", "evaluate"]


@pytest.fixture(scope="module")
def streamed(chain) -> Path:
    """The finished run, with what comes after scoring done again by streaming."""
    run_dir = chain.copy("streamed", before="prune")
    chain.run(run_dir, "prune.streaming=true", stages=AFTER)
    return run_dir


def test_what_the_stage_leaves(streamed, chain):
    found = Manifest.read(streamed / "prune")
    config = chain.config(streamed, "prune.streaming=true")
    assert {name.split("/")[0] for name in found.outputs} == set(GRAPH["prune"].results(config)) > {"hf", "kept.json"}
    assert not (streamed / "prune" / "megatron").exists()
    for name in ("architecture.json", "pruned.json", "kept.json"):
        assert (streamed / "prune" / name).read_bytes() == (chain.finished / "prune" / name).read_bytes()
    assert found.metrics == chain.manifest(chain.finished, "prune").metrics


@pytest.mark.parametrize("stage", ["distill", "export", "evaluate"])
def test_the_same_results_from_both(stage, streamed, chain):
    """Bit for bit: the same weights start on the same samples."""
    assert chain.result(streamed, stage) == chain.result(chain.finished, stage)


def test_a_pruned_model_is_exported_without_distillation(streamed, chain):
    """Its own Hugging Face directory, through Megatron and back."""
    chain.run(streamed, "prune.streaming=true", "pipeline.stages=[import_hf,data,score,prune,export]")
    assert chain.manifest(streamed, "export").metrics["model"] == "prune"
    before, after = (json.loads((streamed / stage / "hf" / "config.json").read_text()) for stage in ("prune", "export"))
    assert before == after
    file = Path("hf") / "model.safetensors"
    assert (streamed / "prune" / file).read_bytes() == (streamed / "export" / file).read_bytes()
