"""Continued pre-training under every layout: the cross-entropy of plain transformers, the same everywhere; it sinks.

The model `llama` of vocabulary 263, padded to 384 under tensor parallelism; 4 sequences of 32 tokens a step.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM


def losses(result) -> list[float]:
    return [record["loss"] for record in result.metrics("pretrain") if "loss" in record]


def test_the_first_loss_is_that_of_plain_transformers(single, inputs):
    """Of the global batch with which distillation begins too, in float64; no token is left out."""
    single["distill llama"]
    batch = torch.load(single.path / "llama" / "batch.pt", weights_only=True)
    plain = AutoModelForCausalLM.from_pretrained(inputs / "llama", dtype=torch.float64)
    with torch.no_grad():
        logits = plain(batch["tokens"]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    assert losses(single)[0] == pytest.approx(float(expected), rel=1e-5)


def test_it_learns(single):
    measured = [record["held_out_loss"] for record in single.metrics("pretrain") if "held_out_loss" in record]
    assert len(measured) == 3 and measured[-1] < measured[0]


@pytest.mark.parametrize("layout", ["tp2", "pp2", "dp2"], indirect=True)
def test_every_layout_gives_the_same(layout, single):
    assert losses(layout) == pytest.approx(losses(single), rel=1e-5)
    norms = [[r["grad_norm"] for r in each.metrics("pretrain") if "grad_norm" in r] for each in (layout, single)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
