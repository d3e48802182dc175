"""Megatron models of an architecture: sizes, rounding, and a loss that leaves the padded vocabulary out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import distributed, minitron, model


def build(directory: Path, **settings) -> tuple[torch.nn.Module, Architecture]:
    a = Architecture.from_hf(directory)
    return model.build(model.gpt_config(a, seq_length=32, **settings), a), a


@pytest.mark.parametrize("kind", ["llama", "tied", "mistral", "qwen2", "window", "llama3_rope"])
def test_a_megatron_model_has_the_parameters_of_its_architecture(kind, random_hf):
    """Apart from padding: 263 -> 384 rows, 1,000 -> 1,024; and the inverse of Architecture.gpt_config_kwargs."""
    with distributed.model_parallel():
        built, a = build(random_hf(kind))
        minitron.check_counts(built, a)
        assert built.embedding.word_embeddings.weight.shape[0] == a.padded_vocab_size() == -(-a.vocab_size // 128) * 128
        config = model.gpt_config(a, seq_length=32)
        again = Architecture.from_gpt_config(
            config, vocab_size=a.vocab_size, max_position_embeddings=a.max_position_embeddings, model_type=a.model_type
        )
        assert again == a


def test_rounding_keeps_the_dtype_and_loses_nothing_the_second_time(random_hf: Callable[[str], Path]):
    """1 + 2^-9 is 1 in bfloat16, which has 8 bits."""
    with distributed.model_parallel():
        built, _ = build(random_hf("llama"))
        with torch.no_grad():
            built.decoder.final_layernorm.weight.fill_(1 + 2**-9)
        model.round_parameters(built, "float32")
        assert built.decoder.final_layernorm.weight[0] == 1 + 2**-9
        model.round_parameters(built, "bfloat16")
        assert built.decoder.final_layernorm.weight[0] == 1
        assert {p.dtype for p in built.parameters()} == {torch.float32}
        before = [p.clone() for p in built.parameters()]
        cast = model.cast(built, "bfloat16")
        assert {p.dtype for p in cast.parameters()} == {torch.bfloat16}
        assert all(torch.equal(p.float(), q) for p, q in zip(cast.parameters(), before, strict=True))


def test_the_loss_leaves_padded_columns_out(llama):
    """Rows of padding set to 100 would take all the probability; the loss of the real 263 does not see them."""
    megatron, a = llama
    ids = torch.randint(0, a.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    positions, labels = torch.arange(16).expand(2, -1), ids.roll(-1, 1)
    megatron.eval()
    with torch.no_grad():
        before = megatron(ids, positions, None, labels=labels)
        megatron.output_layer.weight[a.vocab_size :] = 100.0
        after = megatron(ids, positions, None, labels=labels)
        logits = megatron(ids, positions, None)[..., : a.vocab_size]
    assert torch.equal(before, after)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    torch.testing.assert_close(after.flatten(), expected, rtol=1e-5, atol=1e-6)


def test_a_loss_that_another_replaces_is_not_computed_in_training(llama):
    megatron, a = llama
    model.use_padding_free_loss(megatron, a, skip_in_training=True)
    ids = torch.arange(8)[None]
    losses = {}
    for mode in (True, False):
        megatron.train(mode)
        losses[mode] = megatron(ids, torch.arange(8)[None], None, labels=ids)
    assert losses[True].shape == losses[False].shape == (1, 8)
    assert not losses[True].any()
    assert losses[False].all()


def test_positions_reach_the_whole_context(random_hf):
    """Training length 32, context 256: the same model either way, up to the context."""
    with distributed.model_parallel():
        built, a = build(random_hf("llama"))
        ids = torch.randint(0, a.vocab_size, (1, 256), generator=torch.Generator().manual_seed(0))
        built.eval()
        with torch.no_grad():
            assert built(ids, torch.arange(256)[None], None).shape == (1, 256, 384)


@pytest.mark.parametrize(("recompute", "layers", "attentions"), [("none", 1, 1), ("selective", 1, 2), ("full", 2, 2)])
def test_recomputing_runs_a_part_again_in_the_backward_pass(recompute, layers, attentions, random_hf):
    """How often a forward and a backward pass call a layer and its core attention."""
    with distributed.model_parallel():
        built, a = build(random_hf("llama"), recompute=recompute)
        layer, calls = built.decoder.layers[1], {"layer": 0, "attention": 0}

        def count(name: str):
            return lambda *_: calls.update({name: calls[name] + 1})

        layer.register_forward_hook(count("layer"))
        layer.self_attention.core_attention.register_forward_hook(count("attention"))
        ids = torch.randint(0, a.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
        built(ids, torch.arange(16).expand(2, -1), None, labels=ids).sum().backward()
        assert calls == {"layer": layers, "attention": attentions}
