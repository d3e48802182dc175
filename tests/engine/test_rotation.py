"""A rotated model computes the same function; its channels are the principal axes of the normalised stream."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import convert, datasets, distributed, forward, model, rotation


def calibration(inputs) -> list[torch.Tensor]:
    return list(datasets.blocks(inputs / "train", 32, 6 * 32)[:, :-1].split(2))


@pytest.fixture
def gained(llama):
    """The model `llama` with norms that are not all ones."""
    megatron, a = llama
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in megatron.named_parameters():
            if "layernorm" in name:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return megatron, a


def test_axes_are_eigenvectors_of_the_covariance_of_norm_inputs(llama, inputs):
    """x / rms(x) of 4 attention norms, 4 FFN norms and the last, over 6 * 32 tokens: its trace is 9 * 192 * 64."""
    megatron, _ = llama
    axes, values = rotation.principal_axes(megatron, calibration(inputs))
    hf = AutoModelForCausalLM.from_pretrained(inputs / "llama", dtype=torch.float64)
    covariance = torch.zeros(64, 64, dtype=torch.float64)

    def add(_, args) -> None:
        x = args[0].flatten(0, -2)
        x = x / x.square().mean(-1, keepdim=True).sqrt()
        covariance.add_(x.T @ x)

    for layer in hf.model.layers:
        layer.input_layernorm.register_forward_pre_hook(add)
        layer.post_attention_layernorm.register_forward_pre_hook(add)
    hf.model.norm.register_forward_pre_hook(add)
    with torch.no_grad():
        for batch in calibration(inputs):
            hf(batch)
    assert covariance.trace().item() == pytest.approx(9 * 192 * 64, rel=1e-6)
    assert values.sum().item() == pytest.approx(9 * 192 * 64, rel=1e-4)
    assert (values[:-1] >= values[1:]).all()
    torch.testing.assert_close(axes.T @ axes, torch.eye(64, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(axes.T @ covariance @ axes, values.diag(), rtol=1e-4, atol=1e-4 * values[0].item())


def test_a_token_whose_embedding_is_zero(llama, inputs):
    """It has no direction and counts for nothing in the first norm's covariance, instead of making all of it NaN."""
    megatron, _ = llama
    batches = calibration(inputs)
    with torch.no_grad():
        megatron.embedding.word_embeddings.weight[batches[0][0, 0]] = 0
    axes, values = rotation.principal_axes(megatron, batches)
    assert axes.isfinite().all() and values.isfinite().all()


def test_rotating_changes_no_logit(gained, inputs):
    megatron, a = gained
    tokens = calibration(inputs)[0]
    before = forward.logits(megatron, tokens, a.vocab_size)
    weight = megatron.decoder.layers[0].mlp.linear_fc2.weight.clone()
    axes, _ = rotation.principal_axes(megatron, calibration(inputs))
    rotation.rotate(megatron, axes)
    assert not torch.allclose(megatron.decoder.layers[0].mlp.linear_fc2.weight, weight, atol=1e-2)
    assert all((p == 1).all() for n, p in megatron.named_parameters() if "layernorm" in n)
    torch.testing.assert_close(forward.logits(megatron, tokens, a.vocab_size), before, rtol=1e-4, atol=1e-4)


def test_gains_of_the_narrower_stream(inputs):
    """Variances 6 3 2 1 spread over 64 channels as 4 blocks; 16 of 64 kept hold 6/12: gains sqrt(0.5 * 64 / 16)."""
    values = torch.tensor([6.0, 3.0, 2.0, 1.0], dtype=torch.float64).repeat_interleave(16)
    a = Architecture.from_hf(inputs / "llama").pruned_to(hidden_size=16)
    with distributed.model_parallel():
        megatron = model.build(model.gpt_config(a, seq_length=32), a)
        rotation.set_gains(megatron, values)
        gains = [p for n, p in megatron.named_parameters() if "layernorm" in n]
        assert len(gains) == 9
        assert all(torch.allclose(g, torch.full((16,), math.sqrt(2.0))) for g in gains)


def test_a_model_whose_stream_lives_in_a_subspace_is_cut_without_loss(inputs):
    """Every writer to the stream is projected to 24 random directions: 24 principal axes then hold all of it."""
    from bielik_nemo.config_prune import Compensation
    from bielik_nemo.engine import compensation
    from bielik_nemo.engine.scores import Scores
    from bielik_nemo.prune.kept import choose

    a = Architecture.from_hf(inputs / "llama")
    target = a.pruned_to(hidden_size=24)
    directions = torch.linalg.qr(torch.randn(64, 24, generator=torch.Generator().manual_seed(1)))[0]
    projection = directions @ directions.T

    def load():
        megatron = model.build(model.gpt_config(a, seq_length=128), a)
        convert.load_hf(megatron, inputs / "llama", a)
        with torch.no_grad():
            megatron.embedding.word_embeddings.weight.copy_(megatron.embedding.word_embeddings.weight @ projection)
            for layer in megatron.decoder.layers:
                for linear in (layer.self_attention.linear_proj, layer.mlp.linear_fc2):
                    linear.weight.copy_(projection @ linear.weight)
        return megatron

    units = {f"norms.{i}": torch.rand(64) for i in range(8)}
    for i in range(4):
        units |= {f"decoder.layers.{i}.mlp": torch.rand(96), f"decoder.layers.{i}.self_attention": torch.rand(128)}
    scores = Scores(torch.rand(4, dtype=torch.float64), units)
    kept = choose(scores, a, target, range(4))
    with distributed.model_parallel():
        tokens = calibration(inputs)[0]
        before = forward.logits(load(), tokens, a.vocab_size)
        settings = Compensation(rotation=True)
        cut, _ = compensation.cut(load, a, target, kept, calibration(inputs), settings)
        # Not exact: the norms' epsilon is now added to the mean of 24 squares, not of 64.
        torch.testing.assert_close(forward.logits(cut, tokens, a.vocab_size), before, rtol=0, atol=5e-3)
        plain, _ = compensation.cut(load, a, target, kept, calibration(inputs), Compensation())
        assert (forward.logits(plain, tokens, a.vocab_size) - before).abs().max() > 0.1
