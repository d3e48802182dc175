"""The harness's numbers for a Megatron model are those of its own adapter for transformers on the export."""

from __future__ import annotations

import pytest
import ranks

pytest.importorskip("lm_eval", reason='needs lm-evaluation-harness: pip install "bielik_nemo[measure]"')

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from bielik_nemo.data import tiny
from bielik_nemo.engine.harness import MegatronLM
from bielik_nemo.errors import DataError

LAYOUTS = pytest.mark.parametrize("layout", ["single", "tp2"], indirect=True)


@pytest.fixture(scope="module", params=["llama", "tied"])
def expected(request, single, inputs) -> tuple[str, dict[str, list]]:
    """A kind, and the answers of `HFLM` on its export."""
    lm = HFLM(
        pretrained=str(single.path / "hf" / request.param),
        tokenizer=str(inputs / "tokenizer"),
        device="cpu",
        dtype="float32",
        batch_size=3,
        max_length=ranks.READ_AT_A_TIME,
    )
    asked = {
        name: [Instance(name, {}, each, i, ("", i, 1)) for i, each in enumerate(arguments)]
        for name, arguments in ranks.HARNESS.items()
    }
    return request.param, {name: getattr(lm, name)(each) for name, each in asked.items()}


@LAYOUTS
def test_log_likelihoods_are_those_of_the_export(layout, expected):
    """Of letters after a common question, of an empty context, and of one that loses its beginning."""
    kind, answers = expected
    found = layout[f"loglikelihood {kind}"]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in answers["loglikelihood"]], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in answers["loglikelihood"]]
    assert len({round(score, 3) for score, _ in found}) == len(found)


@LAYOUTS
def test_whole_texts_are_read_in_the_same_windows(layout, expected):
    kind, answers = expected
    assert layout[f"loglikelihood_rolling {kind}"] == pytest.approx(answers["loglikelihood_rolling"], abs=5e-3)


@LAYOUTS
def test_answers_are_those_of_the_export(layout, expected):
    kind, answers = expected
    assert layout[f"generate_until {kind}"] == answers["generate_until"]
    assert any(answers["generate_until"])


@pytest.fixture
def lm(llama) -> MegatronLM:
    megatron, a = llama
    return MegatronLM(megatron, tiny.byte_tokenizer(), a.vocab_size, 64, 2, label="nothing")


def test_padding_is_never_likely(lm, llama):
    """With all real logits at -1 each of the 263 words has probability 1 / 263, whatever the padded columns say."""
    import math

    import torch

    megatron, a = llama
    with torch.no_grad():
        megatron.decoder.final_layernorm.weight.fill_(1)
        megatron.output_layer.weight[: a.vocab_size] = 0
        megatron.output_layer.weight[a.vocab_size :] = torch.randn(121, 64)
    ((found, _),) = lm.loglikelihood([Instance("loglikelihood", {}, ("A", "bc"), 0)])
    assert found == pytest.approx(-2 * math.log(263), abs=1e-5)


def test_what_is_alike_is_read_once(lm, monkeypatch):
    """Four letters after one question are one text; a longer answer is another."""
    texts = []
    read = MegatronLM._read
    monkeypatch.setattr(MegatronLM, "_read", lambda self, each, wanted: texts.extend(each) or read(self, each, wanted))
    asked = [("Pytanie?", letter) for letter in (" A", " B", " C", " D", " nic")]
    lm.loglikelihood([Instance("loglikelihood", {}, each, i) for i, each in enumerate(asked)])
    assert len(texts) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, "generation_kwargs: found num_beams, allowed: until"),
        ({"max_gen_toks": 64}, "max_gen_toks: found 64, allowed: 1 to 63"),
    ],
)
def test_what_cannot_be_drawn_is_refused(lm, settings, message):
    with pytest.raises(DataError, match=message):
        lm.generate_until([Instance("generate_until", {}, ("A", {"until": []} | settings), 0)])


def test_a_continuation_that_does_not_fit_is_refused(lm):
    with pytest.raises(DataError, match="found a continuation of 65 tokens, allowed: 1 to 64"):
        lm.loglikelihood([Instance("loglikelihood", {}, ("A", "b" * 65), 0)])
