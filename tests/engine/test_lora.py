"""Adapters: nothing at first, then the only thing that learns; what is left is a plain model. Under every layout."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bielik_nemo.config_align import LoRA
from bielik_nemo.engine import checkpoint, convert, forward, lora, model

LAYOUTS = pytest.mark.parametrize("layout", ["single", "tp2", "pp2"], indirect=True)
SETTINGS = LoRA(rank=4, alpha=6)


def tokens(a) -> torch.Tensor:
    return torch.arange(2 * 24).view(2, 24) * 7 % a.vocab_size


def learn(megatron) -> None:
    """Some B, as training would leave."""
    random = torch.Generator().manual_seed(0)
    for _, layer in lora.layers(megatron):
        with torch.no_grad():
            weight = layer.adapter.linear_out.weight
            weight.copy_(0.05 * torch.randn(weight.shape, generator=random))


def test_a_model_with_new_adapters_says_the_same(llama):
    megatron, a = llama
    before = forward.logits(megatron, tokens(a), a.vocab_size)
    lora.add(megatron, SETTINGS, seed=1)
    assert torch.equal(forward.logits(megatron, tokens(a), a.vocab_size), before)
    trained = {name for name, parameter in megatron.named_parameters() if parameter.requires_grad}
    assert all(".adapter.linear_" in name for name in trained)
    # Four layers of four linear layers, with A and B.
    assert len(trained) == 4 * 4 * 2
    assert {name.rpartition(".")[2] for name, _ in lora.layers(megatron)} == set(SETTINGS.targets)


def test_what_is_saved_is_a_plain_model(llama, tmp_path: Path):
    """W + 6/4 B A in the weights, to the last bit; everything else is as it was; logits as with adapters."""
    megatron, a = llama
    before = {name: value.clone() for name, value in megatron.state_dict().items() if "_extra_state" not in name}
    lora.add(megatron, SETTINGS, seed=1)
    learn(megatron)
    adapted = forward.logits(megatron, tokens(a), a.vocab_size)
    checkpoint.save(megatron, tmp_path / "megatron")
    plain = model.build(model.gpt_config(a, seq_length=128), a)
    checkpoint.load(plain, tmp_path / "megatron")
    found = forward.logits(plain, tokens(a), a.vocab_size)
    torch.testing.assert_close(found, adapted, rtol=1e-5, atol=1e-5 * float(adapted.abs().max()))
    changed = {f"{name}.weight": 6 / 4 * b @ x for name, b, x in matrices(megatron)}
    state = plain.state_dict()
    for name, value in before.items():
        expected = value + changed.pop(name) if name in changed else value
        assert torch.equal(state[name], expected), name
    assert changed == {}
    # The model goes on learning with its adapters.
    assert torch.equal(forward.logits(megatron, tokens(a), a.vocab_size), adapted)


def matrices(megatron):
    for name, layer in lora.layers(megatron):
        yield name, layer.adapter.linear_out.weight.detach(), layer.adapter.linear_in.weight.detach()


def test_the_same_seed_draws_the_same(llama, inputs):
    """And every layer something else, with Xavier's spread: of A [4, 64] sqrt(2 / 68) = 0.171."""
    megatron, a = llama
    other = model.build(model.gpt_config(a, seq_length=128), a)
    for each, seed in ((megatron, 1), (other, 1)):
        lora.add(each, SETTINGS, seed)
    drawn = [x for _, _, x in matrices(megatron)]
    assert all(torch.equal(one, two) for one, (_, _, two) in zip(drawn, matrices(other), strict=True))
    queries = [x for name, _, x in matrices(megatron) if "linear_qkv" in name]
    assert not any(torch.equal(queries[0], each) for each in queries[1:])
    assert torch.stack(queries).std().item() == pytest.approx((2 / 68) ** 0.5, rel=0.1)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_the_first_layer_learns_when_layers_are_computed_again(recompute: str, llama, inputs):
    """Nothing before it has a gradient, so that torch would not look at it."""
    _, a = llama
    gradients = []
    for each in ("none", recompute):
        megatron = model.build(model.gpt_config(a, seq_length=128, recompute=each), a)
        convert.load_hf(megatron, inputs / "llama", a)
        lora.add(megatron, SETTINGS, seed=1)
        learn(megatron)
        megatron.train()
        losses = megatron(tokens(a), torch.arange(24).expand(2, -1), attention_mask=None, labels=tokens(a).roll(-1, 1))
        losses.sum().backward()
        gradients.append({n: p.grad for n, p in megatron.named_parameters() if p.requires_grad})
    assert all(gradient is not None and gradient.any() for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])


@LAYOUTS
def test_trained_adapters_are_merged(layout):
    """The stage's result against its last checkpoint in the frozen model, in logits relative to the largest."""
    assert layout["lora merged"] < 1e-5
    assert layout["lora learnt"] > 0.01
    assert layout["lora"] == "done"


def records(path: Path) -> list[tuple]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [(each["step"], each.get("loss"), each.get("grad_norm"), each.get("held_out_loss")) for each in found]


def test_a_resumed_run_is_the_one_that_was_not_interrupted(single):
    """The second run went on from step 4."""
    assert single["lora"] == "done"
    found = records(single.path / "lora" / "sft" / "metrics.jsonl")
    assert found == records(single.path / "lora" / "whole.jsonl")
    losses = [loss for _, loss, _, _ in found if loss is not None]
    assert len(losses) == 6 and losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("layout", ["tp2", "pp2"], indirect=True)
def test_every_layout_learns_the_same(layout, single):
    found, wanted = (records(each.path / "lora" / "sft" / "metrics.jsonl") for each in (layout, single))
    for one, other in zip(found, wanted, strict=True):
        assert [x for x in one if x is not None] == pytest.approx([x for x in other if x is not None], rel=1e-5)


def test_only_what_was_adapted_changes(single, inputs, tmp_path: Path):
    """Against the checkpoint that it began with: embedding and norms bit for bit."""
    from bielik_nemo.architecture import Architecture
    from bielik_nemo.engine import distributed

    assert single["lora"] == "done"
    a = Architecture.from_hf(inputs / "tied")
    with distributed.model_parallel():
        megatron = model.build(model.gpt_config(a, seq_length=128), a)
        checkpoint.load(megatron, single.path / "lora" / "sft" / "megatron")
        convert.save_hf(megatron, tmp_path / "hf", a)
    before, after = (load_file(path / "model.safetensors") for path in (inputs / "tied", tmp_path / "hf"))
    same = {name for name in after if torch.equal(before[name], after[name])}
    assert same == {name for name in after if "_proj" not in name}


# Why the workarounds for nemo 2.7.3 are there.


def test_why_classes_of_transformer_engine_are_replaced(llama, monkeypatch):
    from nemo.utils.import_utils import UnavailableError, safe_import_from

    column = llama[0].decoder.layers[0].self_attention.linear_qkv
    monkeypatch.setattr(lora.peft, "te", safe_import_from("transformer_engine", "pytorch")[0])
    with pytest.raises(UnavailableError):
        lora.peft.LoRA().transform(column, "linear_qkv", "")
    found, there = safe_import_from("megatron.core.extensions.transformer_engine", "TERowParallelLinear")
    assert there and not isinstance(found, type)


def test_why_a_wrapper_is_told_its_names():
    wrapper = lora.peft.LoRALinear(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match=r"Missing key.*to_wrap\.weight"):
        wrapper.load_state_dict(wrapper.state_dict())


def test_why_nemo_does_not_merge():
    """It knows nothing of other ranks."""
    source = inspect.getsource(lora.peft.LoRAMerge.transform)
    assert "linear_out.weight @ m.adapter.linear_in.weight" in source and "gather" not in source
