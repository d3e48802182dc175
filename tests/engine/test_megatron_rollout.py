"""Answers with Megatron's inference context: those of plain transformers, as training's forward pass sees them."""

from __future__ import annotations

import pytest
import ranks
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from bielik_nemo.engine import kv_cache
from bielik_nemo.engine.megatron_rollout import MegatronEngine
from bielik_nemo.engine.rollout import Answer, Sampling
from bielik_nemo.errors import DataError

LAYOUTS = pytest.mark.parametrize("layout", ["single", "tp2", "pp2"], indirect=True)


def expected(directory, prompt: list[int]) -> list[int]:
    hf = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    hf.generation_config = GenerationConfig(do_sample=False, max_new_tokens=ranks.NEW_TOKENS, pad_token_id=0)
    ids = torch.tensor([prompt])
    return hf.generate(ids, attention_mask=torch.ones_like(ids))[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", ["llama", "tied", "window"])
@LAYOUTS
def test_greedy_answers_are_those_of_transformers_on_the_export(layout, kind, single):
    """40 tokens after prompts of 1, 8 and 3, past the window of 16; `llama` and `window` have a padded vocabulary."""
    for prompt, found in zip(ranks.PROMPTS, layout[f"greedy {kind}"], strict=True):
        assert len(set(found)) > 5
        assert found == expected(single.path / "hf" / kind, prompt)


@pytest.mark.parametrize("name", ranks.ROLLOUTS)
@LAYOUTS
def test_log_probabilities_are_those_of_training(layout, name):
    found = layout[f"rollout {name}"]
    for answers, trained in zip(found["answers"], found["trained"], strict=True):
        for (ids, log_probs, _), again in zip(answers, trained, strict=True):
            assert len(ids) == len(log_probs)
            assert log_probs == pytest.approx(again, abs=1e-4)


@pytest.mark.parametrize("name", ranks.ROLLOUTS)
@LAYOUTS
def test_answers_depend_neither_on_layout_nor_on_batch(layout, name, single):
    """Nor on the cache; the same noise gives others at another temperature."""
    like = {"one by one": "all at once", "without cache": "all at once", "cooler without cache": "cooler"}

    def ids(of: dict) -> list:
        return [[answer[0] for answer in answers] for answers in of["answers"]]

    assert ids(layout[f"rollout {name}"]) == ids(single[f"rollout {like.get(name, name)}"])
    assert ids(single["rollout all at once"]) != ids(single["rollout cooler"])


def test_answers_end_at_stop_tokens_or_are_cut(single):
    """The end belongs to the answer, and nothing follows it; both kinds of end are among the nine."""
    answers = [Answer(*answer) for group in single["rollout all at once"]["answers"] for answer in group]
    for answer in answers:
        assert answer.ended == (answer.ids[-1] in ranks.STOP_IDS)
        assert answer.ended or len(answer.ids) == ranks.ANSWER_TOKENS
        assert not set(answer.ids[:-1]) & set(ranks.STOP_IDS)
    assert {answer.ended for answer in answers} == {True, False}
    assert len({tuple(answer.ids) for answer in answers}) == 9


def engine(llama, decode=str, batch_size: int = 4) -> MegatronEngine:
    megatron, a = llama
    return MegatronEngine(megatron, a.vocab_size, decode, batch_size)


def greedy(llama, prompt: list[int], decode=str, **settings) -> Answer:
    sampling = Sampling(**{"max_tokens": 12, "stop_ids": (), "temperature": 0} | settings)
    ((number, (answer,)),) = engine(llama, decode).generate([prompt], [0], 1, sampling)
    assert number == 0
    return answer


def test_padding_is_never_drawn(llama):
    """With all real logits at -1 the padded columns, whose logit is 0, are the largest."""
    megatron, a = llama
    with torch.no_grad():
        megatron.decoder.final_layernorm.weight.fill_(1)
        megatron.output_layer.weight[: a.vocab_size] = 0
        megatron.output_layer.weight[a.vocab_size :] = torch.randn(121, 64)
    assert greedy(llama, [1, 2, 3], max_tokens=4).ids == [0, 0, 0, 0]
    ((_, answers),) = engine(llama).generate([[1]], [0], 20, Sampling(8, ()))
    assert max(token for answer in answers for token in answer.ids) < a.vocab_size


def test_log_probabilities_at_temperature_0_are_those_at_1(llama):
    """As if drawn: the same tokens, forced by leaving one word to draw from, have the same at temperature 1."""
    assert greedy(llama, [5]) == greedy(llama, [5], temperature=1.0, top_k=1)


def test_a_stop_text_may_span_tokens_and_ends_with_the_token_that_completes_it(llama):
    """Each token is a letter; the stop text is the letters of tokens 4 to 6, found wherever it comes first."""

    def letters(ids) -> str:
        return "".join(chr(ord("a") + token % 26) for token in ids)

    whole = greedy(llama, [5])
    text = letters(whole.ids)
    stop = text[4:7]
    end = text.index(stop) + 3
    found = greedy(llama, [5], letters, stop=("never", stop))
    assert found.ids == whole.ids[:end]
    assert found.ended
    assert found.log_probs == pytest.approx(whole.log_probs[:end], abs=1e-5)
    assert not whole.ended
    assert greedy(llama, [5], letters, stop=("never",)) == whole


def test_the_cache_grows_with_the_answers(llama, monkeypatch):
    """By 3 tokens each time, while answers leave the batch."""
    sampling = Sampling(ranks.NEW_TOKENS, ranks.STOP_IDS, seed=1)

    def answers() -> list:
        found = sorted(engine(llama, batch_size=64).generate(ranks.PROMPTS, [11, 12, 13], 3, sampling))
        return [answer.ids for _, group in found for answer in group]

    roomy = answers()
    monkeypatch.setattr(kv_cache, "ROOM", 3)
    assert answers() == roomy


def test_prompts_come_as_they_are_finished(llama):
    """Prompt 0 ends with its first token, at which prompt 1 goes on."""
    stop = greedy(llama, [5]).ids[0]
    other = next(p for p in range(6, 99) if stop not in greedy(llama, [p]).ids)
    found = engine(llama).generate([[other], [5]], [0, 1], 2, Sampling(12, (stop,), temperature=0))
    assert [(number, [len(answer.ids) for answer in group]) for number, group in found] == [(1, [1, 1]), (0, [12, 12])]


@pytest.mark.parametrize("prompt", [[], [7] * 122])
def test_what_does_not_fit_is_an_error(llama, prompt):
    """The model was built for 128 positions: of an answer of 8 tokens 7 are read, so that 121 are left."""
    with pytest.raises(DataError, match=f"prompt 1 .* found {len(prompt)} tokens, allowed: 1 to 121, .* 128 positions"):
        next(engine(llama).generate([[7] * 121, prompt], [0, 1], 1, Sampling(8, ())))
    assert len(greedy(llama, [7] * 121, max_tokens=8).ids) == 8


@pytest.mark.parametrize("mode", [True, False])
def test_the_model_comes_back_as_it_was(mode, llama):
    """Also when answers are left where they are: training mode, gradients, Megatron's own attention."""
    megatron, _ = llama
    megatron.train(mode)
    before = [dict(vars(layer.self_attention)) for layer in megatron.decoder.layers]
    next(engine(llama).generate([[5], [6]], [0, 1], 1, Sampling(3, ())))
    greedy(llama, [5, 6])
    assert megatron.training is mode
    assert [dict(vars(layer.self_attention)) for layer in megatron.decoder.layers] == before
    tokens = torch.tensor([[1, 2, 3]])
    assert megatron(tokens, tokens, None).requires_grad
