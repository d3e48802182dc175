"""A refitted model is what least squares over plain transformers gives, layer by layer; its errors are what it says."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.llama import LlamaForCausalLM

from bielik_nemo.architecture import Architecture
from bielik_nemo.config_prune import Compensation
from bielik_nemo.engine import refit

RIDGE = Compensation().ridge
on_both_layouts = pytest.mark.parametrize("layout", ["single", "pp2"], indirect=True)


class Reference:
    """One transformers model in float64, run layer by layer."""

    def __init__(self, model: LlamaForCausalLM):
        self.layers = model.model.layers
        self.model = model.model

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.embed_tokens(tokens)

    def run(self, index: int, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs of both projections, and the stream after the attention and after the layer."""
        layer, seen = self.layers[index], {}
        hooks = [
            layer.self_attn.o_proj.register_forward_pre_hook(lambda _, a: seen.update(x_attention=a[0])),
            layer.mlp.down_proj.register_forward_pre_hook(lambda _, a: seen.update(x_ffn=a[0])),
            layer.post_attention_layernorm.register_forward_pre_hook(lambda _, a: seen.update(attention=a[0])),
        ]
        length = hidden.shape[1]
        positions = torch.arange(length)[None]
        causal = torch.full((length, length), float("-inf"), dtype=hidden.dtype).triu(1)[None, None]
        rotary = self.model.rotary_emb(hidden, positions)
        out = layer(hidden, attention_mask=causal, position_ids=positions, position_embeddings=rotary)
        for hook in hooks:
            hook.remove()
        return seen | {"ffn": out[0] if isinstance(out, tuple) else out}


def fit(weight: torch.Tensor, x: torch.Tensor, target: torch.Tensor, now: torch.Tensor) -> None:
    """Damped normal equations in one piece, each token divided by the root mean square of its target."""
    rms = target.square().mean(-1, keepdim=True).sqrt()
    x, residual = (x / rms).flatten(0, 1), ((target - now) / rms).flatten(0, 1)
    gram = x.T @ x
    damped = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight += torch.linalg.solve(damped, x.T @ residual).T


@torch.no_grad()
def expected(inputs, layout, name: str, kept: list[int], parts: refit.Parts) -> dict[str, torch.Tensor]:
    """Projections of the plain cut `name` after the refit, by Hugging Face name."""
    import ranks

    source, cut = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager")
        for path in (inputs / "llama", layout.path / "plain" / name)
    )
    whole, student = Reference(source), Reference(cut)
    tokens = ranks.calibration(inputs)
    t, s = whole.embed(tokens), student.embed(tokens)
    for new, old in enumerate(kept):
        reference = whole.run(old, t)
        t = reference["ffn"]
        gap = range(old + 1, kept[new + 1] if new + 1 < len(kept) else len(whole.layers))
        for dropped in gap if parts.blocks else ():
            t = whole.run(dropped, t)["ffn"]
        if parts.attention:
            now = student.run(new, s)
            fit(
                student.layers[new].self_attn.o_proj.weight,
                now["x_attention"],
                reference["attention"],
                now["attention"],
            )
        if parts.ffn or (parts.blocks and len(gap)):
            now = student.run(new, s)
            fit(student.layers[new].mlp.down_proj.weight, now["x_ffn"], t, now["ffn"])
        s = student.run(new, s)["ffn"]
    return {name: tensor.float() for name, tensor in cut.state_dict().items()}


@on_both_layouts
@pytest.mark.parametrize("name", ["ffn", "attention", "blocks"])
def test_refitted_weights_are_the_least_squares_solution(layout, name, inputs):
    import ranks

    layout[f"compensated {name}"]
    _, kept, parts = ranks.COMPENSATIONS[name]
    found = load_file(layout.path / "compensated" / name / "model.safetensors")
    plain = load_file(layout.path / "plain" / name / "model.safetensors")
    wanted = expected(inputs, layout, name, kept, refit.Parts(**parts))
    changed = {key for key in found if not torch.equal(found[key], plain[key])}
    projections = {"attention": ("o_proj",), "ffn": ("down_proj",), "blocks": ("down_proj",)}[name]
    assert changed and all(any(part in key for part in projections) for key in changed)
    for key in changed:
        scale = (wanted[key] - plain[key]).abs().max().item()
        torch.testing.assert_close(found[key], wanted[key], rtol=0, atol=2e-3 * scale, msg=lambda m, k=key: f"{k}: {m}")
    assert len(changed) == (1 if name == "blocks" else 4)


@on_both_layouts
def test_every_cut_is_compensated_together(layout, inputs):
    """All axes cut, the stream rotated, all projections refitted: errors fall, and the export loads."""
    errors = layout["compensated all"]
    assert errors and all(e["after"] < e["before"] for e in errors.values())
    a = Architecture.from_hf(layout.path / "compensated" / "all")
    assert (a.num_layers, a.hidden_size, a.ffn_hidden_size, a.num_attention_heads) == (2, 40, 56, 2)
    AutoModelForCausalLM.from_pretrained(layout.path / "compensated" / "all")


def test_two_pipeline_stages_refit_alike(single, pp2):
    import ranks

    for name in ranks.COMPENSATIONS:
        single[f"compensated {name}"], pp2[f"compensated {name}"]
        one, two = (load_file(r.path / "compensated" / name / "model.safetensors") for r in (single, pp2))
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=0, atol=2e-3 * one[key].abs().max().item() + 1e-5)
