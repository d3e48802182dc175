"""Aggregations equal their formulas, by hand and over plain transformers in float64, whatever the batches and layout.

The calibration set is 6 sequences of 32 tokens, in batches of 4 and 2: samples are aggregated one by one, batches must
not show. Block Influence is the mean over the two batches of the mean over their tokens of 1 - cos(input, output).
"""

from __future__ import annotations

import pytest
import ranks
import torch
from transformers import AutoModelForCausalLM

from bielik_nemo.config_prune import Importance
from bielik_nemo.engine import datasets, importance
from bielik_nemo.engine.scores import Scores

on_both_layouts = pytest.mark.parametrize("layout", ["single", "pp2"], indirect=True)

FORMULAS = {  # of values along dimension 0
    "mean": lambda x: x.abs().mean(0),
    "l2": lambda x: (x**2).sum(0).sqrt(),
    "var": lambda x: (x**2).mean(0) - x.mean(0) ** 2,
}


def test_over_tokens_by_hand():
    """One sample, tokens 1, -2, 4 of one unit: mean of |x| 7/3, l2 sqrt(21), var (1 + 4 + 16)/3 - 1 = 6."""
    x = torch.tensor([1.0, -2.0, 4.0]).view(3, 1, 1)
    assert importance.over_tokens(x, "mean").item() == pytest.approx(7 / 3)
    assert importance.over_tokens(x, "l2").item() == pytest.approx(21**0.5)
    assert importance.over_tokens(x, "var").item() == pytest.approx(6)


def test_over_tokens_keeps_samples_and_units_apart_and_works_in_fp32():
    """Token t of sample b, unit u is 100 b + 10 u + t, t = 0 or 1: mean 100 b + 10 u + 0.5, var 1/4."""
    b, u, t = torch.arange(3), torch.arange(4), torch.arange(2)
    x = (100 * b[None, :, None] + 10 * u + t[:, None, None]).to(torch.bfloat16)
    found = importance.over_tokens(x, "mean")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, x.float().mean(0), rtol=0, atol=0)
    assert found.shape == (3, 4)


@pytest.mark.parametrize("sizes", [[4], [1, 3], [3, 1], [1, 1, 1, 1], [2, 2]])
def test_over_samples_by_hand(sizes):
    """Samples 1, 2, 4, 5: mean 3, l2 sqrt(1 + 4 + 16 + 25) = sqrt(46), var (4 + 1 + 1 + 4) / 4 = 2.5."""
    samples = importance.OverSamples()
    for batch in torch.tensor([1.0, 2.0, 4.0, 5.0]).view(4, 1).split(sizes):
        samples.add(batch)
    assert samples.count == 4
    assert samples.value("mean").item() == pytest.approx(3)
    assert samples.value("l2").item() == pytest.approx(46**0.5)
    assert samples.value("var").item() == pytest.approx(2.5)


def test_a_small_variance_beside_a_large_mean_is_not_lost():
    """1000 + d with d of variance 1e-4: the squares are 1e6, of which fp32 keeps steps of 1/16."""
    values = 1000 + 0.01 * torch.randn(256, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples = importance.OverSamples()
    for batch in values.float().split(3):
        samples.add(batch)
    expected = values.float().double().var(correction=0).item()
    assert samples.value("var").item() == pytest.approx(expected, rel=1e-2)
    naive = (values.float() ** 2).mean() - values.float().mean() ** 2
    assert abs(naive.item() / expected - 1) > 1  # the formula of the two sums


@pytest.fixture(scope="module")
def activations(inputs) -> dict[str, torch.Tensor]:
    """By name, what passes through plain transformers: `[6 samples, 32 tokens, units]`, float64."""
    hf = AutoModelForCausalLM.from_pretrained(inputs / "llama", dtype=torch.float64, attn_implementation="eager")
    found: dict[str, torch.Tensor] = {}
    for i, layer in enumerate(hf.model.layers):
        for name, module, side in (
            (f"norms.{2 * i}", layer.input_layernorm, "out"),
            (f"norms.{2 * i + 1}", layer.post_attention_layernorm, "out"),
            (f"decoder.layers.{i}.self_attention", layer.self_attn.o_proj, "in"),
            (f"decoder.layers.{i}.mlp", layer.mlp.down_proj, "in"),
        ):
            module.register_forward_hook(
                lambda m, args, out, name=name, side=side: found.update({name: out if side == "out" else args[0]})
            )
    with torch.no_grad():
        hf(ranks.calibration(inputs))
    return found


@on_both_layouts
@pytest.mark.parametrize("batch", FORMULAS)
@pytest.mark.parametrize("seq", FORMULAS)
def test_units_equal_their_definition(layout, batch, seq, activations):
    layout[f"importance {batch},{seq}"]
    found = Scores.load(layout.path / f"importance {batch},{seq}.safetensors").units
    assert found.keys() == activations.keys()
    for name, x in activations.items():
        expected = FORMULAS[batch](FORMULAS[seq](x.transpose(0, 1))) ** 2
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-3, atol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_aggregations_rank_differently(single):
    """So that the test above can fail: no two of the nine agree on the FFN channels that are worth keeping."""
    single["importance var,var"]
    names = [f"importance {batch},{seq}" for batch in FORMULAS for seq in FORMULAS]
    units = [Scores.load(single.path / f"{name}.safetensors").units["decoder.layers.2.mlp"] for name in names]
    assert len({tuple(scores.argsort(descending=True).tolist()) for scores in units}) == 9


def test_two_pipeline_stages_give_the_same(single, pp2):
    names = [f"importance {name}" for name in ranks.IMPORTANCES]
    for name in names:
        single[name], pp2[name]
        one, two = (Scores.load(run.path / f"{name}.safetensors") for run in (single, pp2))
        assert one.units.keys() == two.units.keys()
        assert one.blocks.keys() == two.blocks.keys()
        for key in one.units:
            torch.testing.assert_close(one.units[key], two.units[key], rtol=1e-6, atol=0)
        torch.testing.assert_close(one.layers, two.layers, rtol=0, atol=1e-6)
        for length in one.blocks:
            torch.testing.assert_close(one.blocks[length], two.blocks[length], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "lengths"), [("l2,mean", []), ("loss", []), ("blocks", [1, 3])])
def test_layers_and_blocks_are_what_was_asked_for(name, lengths, single):
    """`loss` has the loss increase where the others have Block Influence, which lies between 0 and 2."""
    single[f"importance {name}"]
    found = Scores.load(single.path / f"importance {name}.safetensors")
    influence = Scores.load(single.path / "importance var,var.safetensors").layers
    assert sorted(found.blocks) == lengths
    assert torch.equal(found.layers, influence) == (name != "loss")
    assert found.key == {"model": "llama"}
    assert 0 < influence.min() and influence.max() < 2


def test_hooks_are_gone_when_the_block_ends(llama):
    megatron, _ = llama
    with pytest.raises(ValueError, match="stop"), importance.observed(megatron, "l2"):
        raise ValueError("stop")
    assert not any(module._forward_hooks for module in megatron.modules())


def test_only_the_calibration_samples_wanted_measure_layers(llama, inputs, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        importance.leave_out,
        "loss_increases",
        lambda model, layers, tokens, lengths, batch: seen.update(n=len(tokens), lengths=lengths) or {1: torch.ones(4)},
    )
    megatron, a = llama
    settings = Importance(layers="loss_increase", layer_samples=5)
    found = importance.measure(megatron, a, ranks.calibration(inputs), settings, 4, {})
    assert seen == {"n": 5, "lengths": [1]}
    assert torch.equal(found.layers, torch.ones(4))


def test_calibration_of_the_tests_is_what_they_say(inputs):
    blocks = datasets.blocks(inputs / "train", ranks.SEQ_LENGTH, 6 * ranks.SEQ_LENGTH)
    assert torch.equal(ranks.calibration(inputs), blocks[:, :-1])
    assert ranks.calibration(inputs).shape == (6, 32)
