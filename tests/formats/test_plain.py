from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bielik_nemo.errors import CheckpointError
from bielik_nemo.formats import plain


def test_importance_is_the_mean_square_of_inputs(tiny_hf: Path):
    """Of the first layer's query projection: what the first norm gives for the embeddings of the calibration tokens."""
    model = plain.load(tiny_hf)
    tokens = torch.randint(0, 256, (3, 16), generator=torch.Generator().manual_seed(0))
    found = plain.importance(model, tokens)
    with torch.no_grad():
        inputs = model.model.layers[0].input_layernorm(model.model.embed_tokens(tokens)).flatten(0, 1)
    expected = inputs.square().mean(0)
    assert torch.allclose(found["model.layers.0.self_attn.q_proj.weight"], expected, rtol=1e-4)
    assert len(found) == 4 * 7 and found["model.layers.3.mlp.down_proj.weight"].shape == (160,)
    assert not model.model.layers[0].self_attn.q_proj._forward_pre_hooks


def test_loss_is_transformers_own(tiny_hf: Path):
    model = plain.load(tiny_hf)
    blocks = torch.randint(0, 256, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert plain.loss(model, blocks) == pytest.approx(model(blocks, labels=blocks).loss.item(), rel=1e-5)


def test_no_model(tmp_path: Path):
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        plain.load(tmp_path)
