"""What is not a number is named by the layer in which it appears first."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ranks
import torch

from bielik_nemo.config_prune import Importance
from bielik_nemo.engine import finite, forward, importance
from bielik_nemo.errors import GateError


def test_finite_activations_pass():
    finite.require("it", torch.tensor([0.0, -3e38]))


def test_what_was_found_is_counted():
    values = torch.tensor([1.0, float("nan"), float("inf"), -float("inf")])
    with pytest.raises(GateError, match="output of layer 3: found 1 NaN and 2 infinite of 4 activations of a batch"):
        finite.require("layer 3", values)


@pytest.mark.parametrize(
    ("parameter", "value", "named"),
    [
        ("embedding.word_embeddings.weight", float("nan"), "the embedding: found .* NaN"),
        ("decoder.layers.0.mlp.linear_fc2.weight", float("nan"), r"layer 0 \(counted from 0\): found .* NaN"),
        ("decoder.layers.2.self_attention.linear_proj.weight", float("inf"), r"layer 2 \(counted from 0\)"),
    ],
)
def test_the_first_bad_layer_is_named(parameter, value, named, llama, inputs):
    """All later layers and the loss have it too."""
    megatron, _ = llama
    with torch.no_grad():
        megatron.get_parameter(parameter).fill_(value)
    tokens = ranks.calibration(inputs)
    assert not torch.isfinite(torch.tensor(forward.held_out_loss(megatron, tokens, 4)))
    with pytest.raises(GateError, match=f"model.source: output of {named}"), finite.activations(megatron):
        forward.held_out_loss(megatron, tokens, 4)
    assert not any(module._forward_hooks for module in megatron.modules())


def test_scoring_is_checked_too(llama, inputs):
    megatron, a = llama
    with torch.no_grad():
        megatron.get_parameter("decoder.layers.1.mlp.linear_fc1.weight").fill_(float("nan"))
    settings = Importance()
    with pytest.raises(GateError, match=r"layer 1 \(counted from 0\)"), finite.activations(megatron):
        importance.measure(megatron, a, ranks.calibration(inputs), settings, 4, {})


def test_layers_of_a_later_pipeline_stage_have_their_global_index():
    """Layers 3 and 4, as Megatron counts from 1; the stage has no embedding."""

    class Layer(torch.nn.Module):
        def __init__(self, number: int, factor: float):
            super().__init__()
            self.layer_number, self.factor = number, factor

        def forward(self, x):
            return x * self.factor, None

    layers = torch.nn.ModuleList([Layer(3, 1.0), Layer(4, float("inf"))])
    stage = SimpleNamespace(pre_process=False, decoder=SimpleNamespace(layers=layers))
    with pytest.raises(GateError, match="layer 3 "), finite.activations(stage):
        x = torch.ones(2)
        for layer in layers:
            x, _ = layer(x)
