"""What is timed is the generation that transformers itself does."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from bielik_nemo.engine.transformers_speed import TransformersEngine

PROMPTS = [[1, 200, 7, 7, 30], [5, 6, 7, 8, 9]]


def test_the_tokens_are_those_of_generate(random_hf, monkeypatch):
    directory = random_hf("llama")
    reference = AutoModelForCausalLM.from_pretrained(directory).eval()
    wanted = reference.generate(
        torch.tensor(PROMPTS), max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0
    )
    engine, drawn = TransformersEngine(directory, "float32"), []
    step = engine._next
    monkeypatch.setattr(engine, "_next", lambda ids, cache: drawn.append(step(ids, cache)) or drawn[-1])
    first, total = engine.generate(PROMPTS, 6)
    assert torch.cat(drawn, 1).tolist() == wanted[:, 5:].tolist()
    assert 0 < first < total


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_have_the_dtype_that_is_asked_for(random_hf, dtype: str):
    model = TransformersEngine(random_hf("bf16"), dtype).model
    assert {str(parameter.dtype) for parameter in model.parameters()} == {f"torch.{dtype}"}
