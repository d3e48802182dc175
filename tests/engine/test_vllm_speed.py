"""What vLLM is asked when it is timed; a stand-in answers."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import vllm_speed
from bielik_nemo.engine.vllm_speed import VLLMEngine, cache_bytes


class StandIn:
    """What of `vllm.LLM` is used; a token takes 10 s, the prompts 7 s."""

    def __init__(self, **settings):
        self.settings, self.asked, self.now = settings, [], 0.0

    def generate(self, prompts, request, use_tqdm):
        assert not use_tqdm
        self.asked.append((prompts, vars(request)))
        self.now += 7 + 10 * (request.max_tokens - 1)


@pytest.fixture
def engine(random_hf, monkeypatch) -> VLLMEngine:
    module = SimpleNamespace(LLM=StandIn, SamplingParams=lambda **each: SimpleNamespace(**each))
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    made = VLLMEngine(random_hf("llama"), "bfloat16", [(48, 2), (20, 4)])
    monkeypatch.setattr(vllm_speed.time, "perf_counter", lambda: made.vllm.now)
    return made


def test_the_first_token_and_all_of_them_are_timed(engine):
    assert engine.generate([[1, 2], [3, 4]], 5) == (7.0, 47.0)
    (prompts, first), (again, whole) = engine.vllm.asked
    assert prompts == again == [{"prompt_token_ids": [1, 2]}, {"prompt_token_ids": [3, 4]}]
    assert first == {"temperature": 0, "max_tokens": 1, "ignore_eos": True, "detokenize": False}
    assert whole == first | {"max_tokens": 5}


def test_it_holds_the_largest_load_and_nothing_from_one_turn_to_the_next(engine, random_hf):
    settings = engine.vllm.settings
    assert (settings["max_model_len"], settings["max_num_seqs"], settings["dtype"]) == (48, 4, "bfloat16")
    assert settings["enable_prefix_caching"] is False and settings["model"] == str(random_hf("llama"))


def test_the_cache_is_that_of_the_largest_load_in_whole_blocks(random_hf):
    """2 * 48 tokens are 6 blocks of 16, 4 * 20 tokens 8 (two each): 9 with vLLM's own. A token of 4 layers with 2
    groups of 32 channels is 2 * 4 * 2 * 32 = 512 numbers, 1,024 bytes in bfloat16.
    """
    shape = Architecture.from_hf(random_hf("llama"))
    assert cache_bytes(shape, "bfloat16", [(48, 2), (20, 4)]) == 9 * 16 * 1024
    assert cache_bytes(shape, "float32", [(48, 2)]) == 7 * 16 * 2048
