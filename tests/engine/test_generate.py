"""Greedy continuation with Megatron's KV cache, against transformers' own."""

from __future__ import annotations

import pytest
import ranks
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from bielik_nemo.engine import generate


def expected(directory, prompt: list[int]) -> list[int]:
    hf = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    hf.generation_config = GenerationConfig(do_sample=False, max_new_tokens=ranks.NEW_TOKENS, pad_token_id=0)
    ids = torch.tensor([prompt])
    return hf.generate(ids, attention_mask=torch.ones_like(ids))[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", ["llama", "tied", "window"])
@pytest.mark.parametrize("layout", ["single", "tp2"], indirect=True)
def test_greedy_continuation_is_that_of_transformers(layout, kind, inputs):
    """40 tokens after prompts of 1 and 8, past the window of 16; `llama` and `window` have a padded vocabulary."""
    for prompt, found in zip(ranks.PROMPTS, layout[f"greedy {kind}"], strict=True):
        assert len(set(found)) > 5
        assert found == expected(inputs / kind, prompt)


def test_padding_is_never_chosen(llama):
    """With all real logits at -1 the padded columns, whose logit is 0, are the largest."""
    megatron, a = llama
    with torch.no_grad():
        megatron.decoder.final_layernorm.weight.fill_(1)
        megatron.output_layer.weight[: a.vocab_size] = 0
        megatron.output_layer.weight[a.vocab_size :] = torch.randn(121, 64)
    assert generate.greedy(megatron, [1, 2, 3], 4, a.vocab_size) == [0, 0, 0, 0]


def test_the_stop_token_ends_the_text_and_is_left_out(llama):
    megatron, a = llama
    found = generate.greedy(megatron, [5], 12, a.vocab_size)
    stop = found[4]
    assert generate.greedy(megatron, [5], 12, a.vocab_size, stop=stop) == found[: found.index(stop)]
    never = next(token for token in range(a.vocab_size) if token not in found)
    assert generate.greedy(megatron, [5], 12, a.vocab_size, stop=never) == found


@pytest.mark.parametrize("mode", [True, False])
def test_the_training_mode_comes_back(mode, llama):
    megatron, a = llama
    megatron.train(mode)
    assert len(generate.greedy(megatron, [5, 6], 1, a.vocab_size)) == 1
    assert megatron.training is mode
