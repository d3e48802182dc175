"""A model without layers is plain transformers with these layers deleted, on every layout."""

from __future__ import annotations

import pytest
import ranks
import torch
from transformers import AutoModelForCausalLM

from bielik_nemo.engine import forward, leave_out
from bielik_nemo.engine.scores import Scores


@pytest.fixture(scope="module")
def loss_without(inputs):
    """Mean cross-entropy of plain transformers in float64, nats per token, with the named layers deleted."""
    hf = AutoModelForCausalLM.from_pretrained(inputs / "llama", dtype=torch.float64, attn_implementation="eager")
    layers = list(hf.model.layers)
    tokens = ranks.calibration(inputs)[: ranks.LAYER_SAMPLES]

    def loss(gone: range = range(0)) -> float:
        hf.model.layers = torch.nn.ModuleList([layer for i, layer in enumerate(layers) if i not in gone])
        with torch.no_grad():
            logits = hf(tokens, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()

    return loss


@pytest.mark.parametrize("layout", ["single", "pp2"], indirect=True)
def test_increases_are_those_of_deleted_layers(layout, loss_without):
    """With two stages of two layers, a block of 3 takes all layers of one stage."""
    layout["importance loss"], layout["importance blocks"]
    single = Scores.load(layout.path / "importance loss.safetensors").layers
    blocks = Scores.load(layout.path / "importance blocks.safetensors").blocks
    whole = loss_without()
    for length, found in (1, single), (1, blocks[1]), (3, blocks[3]):
        expected = [loss_without(range(i, i + length)) - whole for i in range(4 - length + 1)]
        assert found.tolist() == pytest.approx(expected, abs=1e-5)
        assert max(map(abs, expected)) > 0.01  # what is compared is not nothing


def test_the_model_is_whole_again(llama, inputs):
    megatron, _ = llama
    tokens = ranks.calibration(inputs)
    before = forward.held_out_loss(megatron, tokens, 4)
    with leave_out.left_out(megatron, [0, 3]):
        assert forward.held_out_loss(megatron, tokens, 4) != before
    with pytest.raises(ValueError, match="stop"), leave_out.left_out(megatron, [1]):
        raise ValueError("stop")
    assert forward.held_out_loss(megatron, tokens, 4) == before
    assert not any("forward" in vars(layer) for layer in megatron.decoder.layers)


def test_progress_counts_every_pass(llama, inputs, monkeypatch):
    """6 samples in batches of 4 are 2 passes; the whole model, 4 single layers and 2 blocks of 3: 7 * 2 = 14."""
    import contextlib

    total, done = [], []

    @contextlib.contextmanager
    def progress(text, count):
        total.append(count)
        yield lambda info="": done.append(1)

    monkeypatch.setattr(leave_out.ui, "progress", progress)
    megatron, _ = llama
    found = leave_out.loss_increases(megatron, 4, ranks.calibration(inputs), [3, 1, 3], 4)
    assert {length: len(values) for length, values in found.items()} == {1: 4, 3: 2}
    assert total == [14] and len(done) == 14


def test_nothing_to_leave_out_runs_nothing():
    assert leave_out.loss_increases(None, 4, torch.zeros(1, 2), [], 1) == {}
