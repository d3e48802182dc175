"""What vLLM is asked for a loss; a stand-in answers."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bielik_nemo.engine import vllm_loss


def test_a_loss_is_the_mean_over_what_a_prompt_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Token i has probability 1 / (i + 1): of 5 1 2 | 4 3 0 the mean is (ln 2 + ln 3 + ln 4 + 0) / 4."""
    asked = {}

    class StandIn:
        def __init__(self, **settings):
            asked["settings"] = settings

        def generate(self, prompts, request, use_tqdm):
            asked["request"] = vars(request)
            for prompt in prompts:
                ids = prompt["prompt_token_ids"]
                told = [{i: SimpleNamespace(logprob=-math.log(i + 1)), 99: None} for i in ids[1:]]
                yield SimpleNamespace(prompt_logprobs=[None, *told])

    module = SimpleNamespace(LLM=StandIn, SamplingParams=lambda **each: SimpleNamespace(**each))
    monkeypatch.setitem(sys.modules, "vllm", module)
    found = vllm_loss.loss(tmp_path, torch.tensor([[5, 1, 2], [4, 3, 0]]))
    assert found == pytest.approx((math.log(2) + math.log(3) + math.log(4) + 0) / 4)
    assert (asked["settings"]["max_model_len"], asked["settings"]["model"]) == (4, str(tmp_path))
    assert asked["request"] == {"temperature": 0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}
