"""The parity gate passes what is the same model and stops everything else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bielik_nemo.engine import model, parity
from bielik_nemo.errors import CheckpointError, GateError

TOKENS = parity.probe_tokens(263, 256, seed=0)
CHANGED = [
    "embedding.word_embeddings.weight",
    "decoder.layers.0.input_layernorm.weight",
    "decoder.layers.1.self_attention.linear_qkv.weight",
    "decoder.layers.2.self_attention.linear_proj.weight",
    "decoder.layers.3.pre_mlp_layernorm.weight",
    "decoder.layers.3.mlp.linear_fc1.weight",
    "decoder.layers.0.mlp.linear_fc2.weight",
    "decoder.final_layernorm.weight",
    "output_layer.weight",
]


def check(megatron, hf: Path, a, dtype: str = "float32") -> dict:
    return parity.check(megatron, hf, a, TOKENS, dtype, 1e-4)


def test_the_same_model_passes(llama, inputs):
    megatron, a = llama
    found = check(megatron, inputs / "llama", a)
    assert 0 < found["max_abs_logit_diff"] < 1e-4
    assert found["tokens"] == 256
    assert found["tolerance"] == 1e-4


@pytest.mark.parametrize("name", CHANGED)
def test_one_changed_weight_is_found_and_the_tolerance_named(name, llama, inputs):
    """One element of one tensor, by 0.05, where weights have a standard deviation of 0.15."""
    megatron, a = llama
    with torch.no_grad():
        megatron.get_parameter(name).view(-1)[5] += 0.05
    with pytest.raises(GateError, match=r"logits differ .* by .*, export.parity_tolerance=0.0001 is allowed"):
        check(megatron, inputs / "llama", a)


def test_logits_that_are_not_numbers_are_found(llama, inputs):
    megatron, a = llama
    with torch.no_grad():
        megatron.decoder.final_layernorm.weight[0] = torch.nan
    with pytest.raises(GateError, match="differ from the Megatron model's by inf"):
        check(megatron, inputs / "llama", a)


def test_both_sides_are_rounded_to_the_stored_dtype(llama, inputs):
    """Against bf16 weights: unrounded Megatron weights are off by far more than 1e-4, rounded ones are not."""
    megatron, a = llama
    with pytest.raises(GateError):
        check(megatron, inputs / "llama", a, "bfloat16")
    model.round_parameters(megatron, "bfloat16")
    assert check(megatron, inputs / "llama", a, "bfloat16")["max_abs_logit_diff"] < 1e-4


def test_a_directory_that_transformers_loads_incompletely(llama, inputs, tmp_path):
    """transformers only warns and draws the missing tensor at random."""
    megatron, a = llama
    broken = Path(shutil.copytree(inputs / "llama", tmp_path / "hf"))
    held = load_file(broken / "model.safetensors")
    del held["model.layers.2.mlp.up_proj.weight"]
    save_file(held, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"incompletely: .*missing_keys.*model.layers.2.mlp.up_proj.weight"):
        check(megatron, broken, a)


def test_a_directory_that_transformers_cannot_load(llama, tmp_path):
    megatron, a = llama
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        check(megatron, tmp_path, a)


def test_probe_covers_the_vocabulary_and_half_of_it_is_text():
    """1,024 tokens are 8 rows of 128; with 500 tokens of text, 3 rows (384 tokens) of at most 4 are text."""
    drawn = parity.probe_tokens(10, 1024, seed=3)
    assert drawn.shape == (8, 128)
    assert set(drawn.flatten().tolist()) == set(range(10))
    assert torch.equal(drawn, parity.probe_tokens(10, 1024, seed=3))
    assert not torch.equal(drawn, parity.probe_tokens(10, 1024, seed=4))
    text = torch.arange(1000, 1500)
    mixed = parity.probe_tokens(10, 1024, seed=3, text=text)
    assert mixed[:3].flatten().tolist() == list(range(1000, 1384))
    assert torch.equal(mixed[3:], drawn[3:])
    assert parity.probe_tokens(10, 1024, seed=3, text=torch.arange(5000))[:4].max() == 511
    assert parity.probe_tokens(10, 1, seed=3).shape == (2, 128)
