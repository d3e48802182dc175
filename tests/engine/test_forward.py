"""Losses and logits of a spread model are those of plain transformers, whatever the padding and the layout."""

from __future__ import annotations

import pytest
import ranks
import torch
from transformers import AutoModelForCausalLM

from bielik_nemo.engine import datasets, forward

KINDS = ("llama", "tied", "window")  # vocabularies 263 (padded to 384), 512 (not padded), 263 with a window of 16


@pytest.fixture(scope="module")
def blocks(inputs) -> torch.Tensor:
    return datasets.blocks(inputs / "held_out" / "text", ranks.SEQ_LENGTH, ranks.HELD_OUT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["single", "tp2", "pp2"], indirect=True)
def test_held_out_loss_is_the_cross_entropy_of_plain_transformers(layout, kind, inputs, blocks):
    """Mean over 10 blocks of 32 predictions, in batches of 4, 4 and 2; the reference in float64.

    Were padded columns counted, the loss of `llama` would rise: 121 logits of 0 beside 263 of about +-1.2.
    """
    hf = AutoModelForCausalLM.from_pretrained(inputs / kind, dtype=torch.float64, attn_implementation="eager")
    assert blocks.shape == (10, 33)
    with torch.no_grad():
        logits = hf(blocks[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten()).item()
    assert layout[f"held_out {kind}"] == pytest.approx(expected, rel=1e-5)
    if kind == "llama":
        padded = torch.cat([logits, logits.new_zeros(*logits.shape[:2], 121)], dim=-1)
        wrong = torch.nn.functional.cross_entropy(padded.flatten(0, 1), blocks[:, 1:].flatten()).item()
        assert wrong > expected * 1.01


def test_the_size_of_batches_does_not_matter(llama, blocks):
    megatron, _ = llama
    losses = [forward.held_out_loss(megatron, blocks, size) for size in (1, 3, 10, 64)]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


def test_logits_are_cut_to_the_vocabulary_and_in_order(llama, inputs):
    """Row by row against transformers; 263 of 384 columns; the training mode comes back."""
    megatron, a = llama
    ids = torch.randint(0, a.vocab_size, (3, 20), generator=torch.Generator().manual_seed(0))
    hf = AutoModelForCausalLM.from_pretrained(inputs / "llama", attn_implementation="eager")
    for mode in (True, False):
        megatron.train(mode)
        found = forward.logits(megatron, ids, a.vocab_size)
        assert found.shape == (3, 20, 263)
        assert found.dtype == torch.float32
        assert not found.requires_grad
        torch.testing.assert_close(found, hf(ids).logits, rtol=0, atol=1e-4)
        assert megatron.training is mode


def test_every_batch_is_consumed_once_and_reported(llama):
    megatron, _ = llama
    batches = [torch.full((1, 4), i) for i in range(3)]
    reported: list[int] = []
    shapes = forward.run(
        megatron, batches, lambda out: tuple(out.shape), on_batch=lambda: reported.append(len(reported))
    )
    assert shapes == [(1, 4, 384)] * 3
    assert reported == [0, 1, 2]
    losses = forward.run(megatron, batches, lambda out: tuple(out.shape), labels=True)
    assert losses == [(1, 3)] * 3
