"""Weights, requests and answers that pass between Megatron and vLLM; a stand-in answers by plain transformers."""

from __future__ import annotations

import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bielik_nemo.engine import vllm_rollout
from bielik_nemo.engine.megatron_rollout import MegatronEngine
from bielik_nemo.engine.rollout import Sampling
from bielik_nemo.engine.vllm_rollout import VLLMEngine
from bielik_nemo.errors import ConfigError, DataError

PROMPTS = [[5], [1, 200, 7, 7, 30]]


class StandIn:
    """What of `vllm.LLM` is used: the likeliest tokens of a transformers model, which takes all weights or none."""

    made: list[dict] = []

    def __init__(self, **settings):
        self.made.append(settings)
        config = AutoConfig.from_pretrained(settings["model"], **settings["hf_overrides"])
        self.hf, self.awake = AutoModelForCausalLM.from_config(config).eval(), True

    def wake_up(self):
        self.awake = True

    def sleep(self, level):
        self.awake = False

    def reset_prefix_cache(self):
        assert self.awake

    def collective_rpc(self, method):
        def load_weights(weights):
            self.hf.load_state_dict(dict(weights), strict=True)

        method(SimpleNamespace(model_runner=SimpleNamespace(model=SimpleNamespace(load_weights=load_weights))))

    def generate(self, prompts, requests, use_tqdm):
        assert self.awake
        self.requests = requests
        return [
            SimpleNamespace(outputs=[self.answer(prompt["prompt_token_ids"], request)])
            for prompt, request in zip(prompts, requests, strict=True)
        ]

    def answer(self, prompt, request):
        ids, log_probs = list(prompt), []
        while len(log_probs) < request.max_tokens and (not log_probs or ids[-1] not in request.stop_token_ids):
            scores = self.hf(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            ids.append(int(scores.argmax()))
            log_probs.append({ids[-1]: SimpleNamespace(logprob=scores.max().item())})
        reason = "stop" if ids[-1] in request.stop_token_ids else "length"
        return SimpleNamespace(token_ids=tuple(ids[len(prompt) :]), logprobs=log_probs, finish_reason=reason)


@pytest.fixture
def made(llama, inputs, tmp_path, monkeypatch):
    """An engine on the stand-in, and Megatron's own of the same model; the directory is of another shape."""
    module = SimpleNamespace(LLM=StandIn, SamplingParams=lambda **each: SimpleNamespace(**each))
    monkeypatch.setitem(sys.modules, "vllm", module)
    vllm_rollout._started.cache_clear()
    StandIn.made.clear()
    shutil.copy(inputs / "llama_student" / "config.json", tmp_path)
    megatron, a = llama
    yield VLLMEngine(megatron, a.vocab_size, str(tmp_path), 8), MegatronEngine(megatron, a.vocab_size, str, 8)
    vllm_rollout._started.cache_clear()


def test_answers_are_those_of_the_weights_that_were_handed_over(made):
    """Also after they changed; every tensor of the transformers model came, under its name and in its shape."""
    vllm, megatron = made
    stop = next(megatron.generate(PROMPTS[:1], [0], 1, Sampling(3, (), temperature=0)))[1][0].ids[2]
    sampling = Sampling(12, (stop,), temperature=0)
    for _ in range(2):
        found, wanted = (
            list(vllm.generate(PROMPTS, [0, 1], 2, sampling)),
            megatron.generate(PROMPTS, [0, 1], 2, sampling),
        )
        assert [number for number, _ in found] == [0, 1]
        for (_, answers), (_, others) in zip(found, sorted(wanted), strict=True):
            assert [(each.ids, each.ended) for each in answers] == [(each.ids, each.ended) for each in others]
            assert answers[0].log_probs == pytest.approx(others[0].log_probs, abs=1e-4)
        with torch.no_grad():
            megatron.model.output_layer.weight.mul_(-1)
    assert not vllm.vllm.awake


def test_requests_carry_the_sampling_and_seeds_of_their_own(made):
    vllm, _ = made
    list(vllm.generate(PROMPTS, [3, 4], 2, Sampling(5, (9, 8), ("\n\n",), temperature=0.7, seed=1)))
    requests = vllm.vllm.requests
    assert len({request.seed for request in requests}) == 4
    common = [{k: v for k, v in vars(request).items() if k != "seed"} for request in requests]
    assert common == 4 * [
        {
            "temperature": 0.7,
            "max_tokens": 5,
            "stop_token_ids": [9, 8],
            "stop": ["\n\n"],
            "ignore_eos": True,
            "logprobs": 0,
            "detokenize": True,
        }
    ]


def test_one_is_started_for_a_shape(made, llama):
    vllm, _ = made
    assert VLLMEngine(vllm.model, llama[1].vocab_size, StandIn.made[0]["model"], 8).vllm is vllm.vllm
    (settings,) = StandIn.made
    assert settings["hf_overrides"]["num_hidden_layers"] == 4
    assert settings["max_model_len"] == settings["hf_overrides"]["max_position_embeddings"] == 129


def test_what_cannot_be_is_refused(made):
    vllm, _ = made
    with pytest.raises(ConfigError, match=r"grpo.top_p=0.9, grpo.top_k=0: allowed with grpo.rollouts=vllm: 1 and 0"):
        next(vllm.generate(PROMPTS, [0, 1], 1, Sampling(5, (), top_p=0.9)))
    with pytest.raises(DataError, match=r"prompt 1 .* found 0 tokens"):
        next(vllm.generate([[1], []], [0, 1], 1, Sampling(5, ())))


def test_without_vllm_the_key_is_named(llama, inputs, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    vllm_rollout._started.cache_clear()
    megatron, a = llama
    with pytest.raises(ConfigError, match=r"grpo.rollouts: found vllm, which is not installed; allowed here: megatron"):
        VLLMEngine(megatron, a.vocab_size, str(inputs / "llama"), 8)


@pytest.mark.parametrize("layout", ["single", "tp2", "pp2"], indirect=True)
def test_tensors_that_go_over_are_those_of_the_checkpoint(layout):
    """On every rank, of an untied and of a tied model."""
    assert layout["handed over"] == []


@pytest.mark.gpu
def test_vllm_answers_as_megatron_does(llama, inputs):
    """Greedy, in bf16 kernels or not: the first tokens agree, and log-probabilities to the tolerance of a run."""
    pytest.importorskip("vllm")
    megatron, a = llama
    sampling = Sampling(8, (), temperature=0)
    engine = VLLMEngine(megatron, a.vocab_size, str(inputs / "llama"), 8)
    own = dict(MegatronEngine(megatron, a.vocab_size, str, 8).generate(PROMPTS, [0, 1], 1, sampling))
    for number, (answer,) in engine.generate(PROMPTS, [0, 1], 1, sampling):
        assert answer.ids == own[number][0].ids
        assert answer.log_probs == pytest.approx(own[number][0].log_probs, abs=0.02)
