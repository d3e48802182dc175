"""Scores equal their definition, and pruning keeps exactly the units that they name.

The reference is the definition over plain transformers: forward hooks in float64. Calibration is 6 sequences of 32
tokens in batches of 2; for a unit with activation x[b, s]

    score = sqrt(sum over the 6 sequences of (mean over 32 tokens of |x|)^2)      (stored squared)
    layer = mean over the 3 batches of the mean over 64 tokens of 1 - cos(input, output)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import ranks
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import distributed, minitron, model
from bielik_nemo.engine.scores import Scores
from bielik_nemo.errors import CheckpointError, GateError
from bielik_nemo.prune.kept import choose

on_both_layouts = pytest.mark.parametrize("layout", ["single", "pp2"], indirect=True)


@pytest.fixture(scope="module")
def definition(inputs) -> dict[str, torch.Tensor]:
    """Scores by name, computed by the formulas above."""
    hf = AutoModelForCausalLM.from_pretrained(inputs / "llama", dtype=torch.float64, attn_implementation="eager")
    scores: dict[str, torch.Tensor] = {"layers": torch.zeros(4, dtype=torch.float64)}

    def add(name: str, x: torch.Tensor) -> None:
        scores[name] = scores.get(name, 0) + x.abs().mean(dim=1).pow(2).sum(dim=0)

    for i, layer in enumerate(hf.model.layers):
        layer.input_layernorm.register_forward_hook(lambda m, a, out, i=i: add(f"norms.{2 * i}", out))
        layer.post_attention_layernorm.register_forward_hook(lambda m, a, out, i=i: add(f"norms.{2 * i + 1}", out))
        layer.mlp.down_proj.register_forward_hook(lambda m, a, out, i=i: add(f"decoder.layers.{i}.mlp", a[0]))
        name = f"decoder.layers.{i}.self_attention"
        layer.self_attn.o_proj.register_forward_hook(lambda m, a, out, name=name: add(name, a[0]))

        def influence(module, args, out, i=i):
            hidden = out[0] if isinstance(out, tuple) else out
            scores["layers"][i] += (1 - torch.cosine_similarity(args[0], hidden, dim=-1).mean()) / 3

        layer.register_forward_hook(influence)
    with torch.no_grad():
        for batch in ranks.calibration(inputs).split(2):
            hf(batch)
    return scores


@on_both_layouts
def test_scores_equal_their_definition(layout, definition):
    layout["pruned ffn"]
    scores = Scores.load(layout.path / "scores.safetensors")
    found = {"layers": scores.layers, **scores.units}
    assert found.keys() == definition.keys()
    for name, expected in definition.items():
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert scores.units["decoder.layers.0.self_attention"].shape == (4 * 32,)
    assert len(scores.units) == 4 * 4


def expected_tensors(source: dict[str, torch.Tensor], found: dict[str, torch.Tensor], axes: dict[str, int]) -> dict:
    """The source's tensors with the units of these scores chosen by index, most important first.

    Norms are summed over all layers; heads compete within their query group of 2 and keep at least one; layers stay in
    order. Axes that are not cut keep their order.
    """

    def top(score: torch.Tensor, count: int) -> torch.Tensor:
        return score.argsort(descending=True)[:count]

    hidden = torch.arange(64)
    if "hidden_size" in axes:
        hidden = top(torch.stack([found[f"norms.{i}"].sqrt() for i in range(8)]).sum(0), axes["hidden_size"])
    layers = list(range(4))
    if "num_layers" in axes:
        layers = sorted(top(found["layers"], axes["num_layers"]).tolist())
    result = {
        "model.embed_tokens.weight": source["model.embed_tokens.weight"][:, hidden],
        "lm_head.weight": source["lm_head.weight"][:, hidden],
        "model.norm.weight": source["model.norm.weight"][hidden],
    }
    for new, old in enumerate(layers):
        ffn, heads = torch.arange(96), torch.arange(4)
        if "ffn_hidden_size" in axes:
            ffn = top(found[f"decoder.layers.{old}.mlp"].sqrt(), axes["ffn_hidden_size"])
        if "num_attention_heads" in axes:
            norms = found[f"decoder.layers.{old}.self_attention"].sqrt().view(2, 2, 32).norm(dim=-1)
            heads = torch.cat([2 * group + top(norms[group], axes["num_attention_heads"] // 2) for group in range(2)])
        query = (heads[:, None] * 32 + torch.arange(32)).flatten()
        w = {
            name: source[f"model.layers.{old}.{name}.weight"]
            for name in (
                "input_layernorm",
                "post_attention_layernorm",
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.o_proj",
                "mlp.gate_proj",
                "mlp.up_proj",
                "mlp.down_proj",
            )
        }
        kept = {name: w[name][hidden] for name in ("input_layernorm", "post_attention_layernorm")}
        kept |= {f"self_attn.{x}_proj": w[f"self_attn.{x}_proj"][:, hidden] for x in "kv"}
        kept["self_attn.q_proj"] = w["self_attn.q_proj"][query][:, hidden]
        kept["self_attn.o_proj"] = w["self_attn.o_proj"][hidden][:, query]
        kept |= {f"mlp.{x}_proj": w[f"mlp.{x}_proj"][ffn][:, hidden] for x in ("gate", "up")}
        kept["mlp.down_proj"] = w["mlp.down_proj"][hidden][:, ffn]
        result |= {f"model.layers.{new}.{name}.weight": tensor for name, tensor in kept.items()}
    return result


@on_both_layouts
@pytest.mark.parametrize("name", ranks.PRUNINGS)
def test_pruned_weights_are_the_sources_by_index(layout, name, inputs):
    """Bit for bit, from the scores that the run itself wrote."""
    layout[f"pruned {name}"]
    directory = layout.path / "pruned" / name
    assert Architecture.from_hf(directory) == Architecture.from_hf(inputs / "llama").pruned_to(**ranks.PRUNINGS[name])
    found = load_file(layout.path / "scores.safetensors")
    expected = expected_tensors(load_file(inputs / "llama" / "model.safetensors"), found, ranks.PRUNINGS[name])
    pruned = load_file(directory / "model.safetensors")
    assert pruned.keys() == expected.keys()
    for tensor in expected:
        assert torch.equal(pruned[tensor], expected[tensor]), tensor


@pytest.mark.parametrize("name", ranks.PRUNINGS)
def test_pruning_cuts_something_that_is_not_the_tail(name, single, inputs):
    """So that the test above can fail: keeping the first units would give another model."""
    single[f"pruned {name}"]
    found, source = load_file(single.path / "scores.safetensors"), load_file(inputs / "llama" / "model.safetensors")
    descending = {key: torch.arange(len(score), 0, -1).to(score) for key, score in found.items()}
    first, best = (expected_tensors(source, scores, ranks.PRUNINGS[name]) for scores in (descending, found))
    assert any(not torch.equal(first[tensor], best[tensor]) for tensor in first)


def test_two_pipeline_stages_give_the_same(single, pp2):
    single["pruned all"], pp2["pruned all"]
    one, two = (load_file(r.path / "scores.safetensors") for r in (single, pp2))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-6, atol=0)
    for name in ranks.PRUNINGS:
        file = Path("pruned") / name / "model.safetensors"
        assert (single.path / file).read_bytes() == (pp2.path / file).read_bytes()


def scores_of(a: Architecture) -> Scores:
    units = {f"norms.{i}": torch.rand(a.hidden_size) for i in range(2 * a.num_layers)}
    for i in range(a.num_layers):
        units[f"decoder.layers.{i}.self_attention"] = torch.rand(a.num_attention_heads * a.head_dim)
        units[f"decoder.layers.{i}.mlp"] = torch.rand(a.ffn_hidden_size)
    return Scores(torch.rand(a.num_layers, dtype=torch.float64), units)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_layers": 3}, "found 0 of decoder.layers.3.mlp, this model has 96"),
        ({"num_layers": 6}, "found 96 of decoder.layers.4.mlp, this model has 0"),
        ({"ffn_hidden_size": 64}, "found 64 of decoder.layers.0.mlp, this model has 96"),
        ({"hidden_size": 48}, "found 48 of norms.0, this model has 64"),
        ({"num_attention_heads": 2}, "found 64 of decoder.layers.0.self_attention, this model has 128"),
    ],
)
def test_another_model_s_scores_are_refused(change, named, inputs):
    a = Architecture.from_hf(inputs / "llama")
    with pytest.raises(CheckpointError, match=named):
        choose(scores_of(replace(a, **change)), a, a.pruned_to(ffn_hidden_size=48), range(4))


def test_a_count_that_differs_stops_the_run(llama):
    """llama has 3 * 4 * 64 * 96 = 73,728 FFN weights; an FFN of 95 would have 4 * 3 * 64 = 768 fewer."""
    megatron, a = llama
    minitron.check_counts(megatron, a)
    total = f"{a.num_parameters():,}"
    with pytest.raises(
        GateError, match=f"pruning left {total} parameters, the target has {a.num_parameters() - 768:,}"
    ):
        minitron.check_counts(megatron, replace(a, ffn_hidden_size=95))


@pytest.mark.parametrize("kind", ["tied", "qwen2", "mistral"])
def test_counts_leave_padding_out_and_count_tied_embeddings_once(kind, inputs):
    a = Architecture.from_hf(inputs / kind)
    with distributed.model_parallel():
        minitron.check_counts(model.build(model.gpt_config(a, seq_length=32), a), a)


def test_pruning_to_the_source_itself_changes_nothing(llama):
    megatron, a = llama
    before = {name: p.clone() for name, p in megatron.named_parameters()}
    kept = choose(scores_of(a), a, a, range(4))
    after = dict(minitron.prune(megatron, a, a, kept).named_parameters())
    assert all(torch.equal(after[name], p) for name, p in before.items())


def test_model_optimizer_still_needs_what_is_adapted():
    """Why minitron.py registers RMSNorm, sets divisors and keeps scores in its own format; what fails here can go."""
    import inspect

    from modelopt.torch.nas.modules import norm
    from modelopt.torch.prune.plugins import mcore_minitron

    assert "RMSNorm" not in inspect.getsource(norm)
    divisors = inspect.signature(mcore_minitron.get_mcore_minitron_config).parameters
    assert {name: divisors[f"{name}_divisor"].default for name in ("hidden_size", "ffn_hidden_size", "num_layers")} == {
        "hidden_size": 256,
        "ffn_hidden_size": 512,
        "num_layers": 2,
    }
    assert "Expected same PP size for stored pruning scores" in inspect.getsource(mcore_minitron)
