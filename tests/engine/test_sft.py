"""SFT under every layout, packed and not: the weighted loss of plain transformers on each conversation alone.

`conftest._conversations`: twelve conversations of 20, 7 and 4 predictions in four sequences of 32, which are one batch.
Their second halves are trained, at 1, 0.5 and 0.7. With `weights` a batch's loss is

    sum over trained tokens of w_t (-log p_t) / sum of w_t

and with `tokens` the same sum over their number. Vocabulary 263, padded to 384.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from bielik_nemo.engine.labelled import Conversations

LAYOUTS = pytest.mark.parametrize("layout", ["single", "tp2", "pp2", "dp2", "pp4"], indirect=True)


def conversations(inputs, part: str = "train"):
    """Ids, marks and weight of each."""
    weights = load_file(inputs / "chat" / part / "weights.safetensors")
    for name, hundredths in weights.items():
        found = Conversations(inputs / "chat" / part / name)
        for i in range(len(found)):
            yield torch.tensor(found[i].ids), torch.tensor(found[i].trained), hundredths[i] / 100


def trained_tokens(inputs) -> int:
    return sum(int(trained[1:].sum()) for _, trained, _ in conversations(inputs))


@pytest.fixture(scope="module")
def reference(inputs):
    """`reference(model, normalization, kl)`: loss and gradient norm of the one batch, each conversation by itself."""

    def compute(name: str, normalization: str, kl: float = 0.0) -> dict[str, float]:
        model = AutoModelForCausalLM.from_pretrained(inputs / name, dtype=torch.float64)
        teacher = AutoModelForCausalLM.from_pretrained(inputs / "llama", dtype=torch.float64)
        total, count = 0.0, 0.0
        for ids, trained, weight in conversations(inputs):
            logits = model(ids[None, :-1]).logits[0].log_softmax(-1)
            losses = -logits.gather(-1, ids[1:, None]).squeeze(-1)
            if kl:
                with torch.no_grad():
                    p = teacher(ids[None, :-1]).logits[0].log_softmax(-1)
                losses = losses + kl * (p.exp() * (p - logits)).sum(-1)
            total = total + weight * (losses * trained[1:]).sum()
            count += trained[1:].sum() * (weight if normalization == "weights" else 1.0)
        (total / count).backward()
        squares = [each.grad.square().sum() for each in model.parameters() if each.grad is not None]
        return {"loss": float(total.detach() / count), "grad_norm": float(torch.stack(squares).sum().sqrt())}

    return compute


def first_step(result, name: str) -> dict[str, float]:
    assert result[f"sft {name}"]["step"]
    return steps(result, name)[0]


def steps(result, name: str) -> list[dict[str, float]]:
    lines = (result.path / name / "sft" / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


def test_the_batch_is_what_it_is_meant_to_be(single, inputs):
    """12 conversations, 4 * 31 of 4 * 32 positions; trained: the second halves, 10, 3 or 4, and 2 of each length."""
    single["sft packed"]
    batches = json.loads((single.path / "packed" / "sft" / "batches.json").read_text())
    assert (batches["conversations"], batches["sequences"], batches["filled"]) == (12, 4, round(31 / 32, 4))
    assert first_step(single, "packed")["trained_tokens"] == sum(
        int(each[1][1:].sum()) for each in conversations(inputs)
    )


@LAYOUTS
def test_packed_is_each_conversation_alone(layout, reference):
    """Loss and gradient, under every layout: block-diagonal attention on all pipeline stages, middle ones too.

    Were attention not kept apart, only the first conversation of each sequence would have its loss.
    """
    wanted = reference("llama", "weights")
    first = first_step(layout, "packed")
    assert {key: first[key] for key in wanted} == pytest.approx(wanted, rel=1e-5)


def test_unpacked_is_the_same(single, reference):
    assert {k: v for k, v in first_step(single, "unpacked").items() if k in ("loss", "grad_norm")} == pytest.approx(
        reference("llama", "weights"), rel=1e-5
    )


def test_both_normalisations(single, reference):
    """The same sum over the number of trained tokens: smaller, since all weights are 1 or less."""
    first, wanted = first_step(single, "by tokens"), reference("llama", "tokens")
    assert {key: first[key] for key in wanted} == pytest.approx(wanted, rel=1e-5)
    assert wanted["loss"] < 0.9 * reference("llama", "weights")["loss"]


@pytest.mark.parametrize("layout", ["single", "tp2", "pp2", "dp2"], indirect=True)
def test_beside_a_teacher(layout, reference):
    """Cross-entropy + 0.5 KL(source || model), of a model that was cut from it."""
    wanted = reference("llama_student", "tokens", kl=0.5)
    first = first_step(layout, "taught")
    assert {key: first[key] for key in wanted} == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", ["adapted", "taught"])
def test_the_rate_follows_the_trained_tokens_of_the_batch(name, single, inputs):
    """1e-3 * sqrt(T / 10) with the T of this batch, all conversations; no warm-up, constant."""
    trained = trained_tokens(inputs)
    assert [record["lr"] for record in steps(single, name)] == pytest.approx([1e-3 * (trained / 10) ** 0.5] * 2)


@LAYOUTS
def test_whole_runs_are_the_same_under_every_layout(layout, single):
    found, wanted = steps(layout, "packed"), steps(single, "packed")
    assert len(found) == 6
    assert [each["loss"] for each in found] == pytest.approx([each["loss"] for each in wanted], rel=1e-4)
    assert found[-1]["loss"] < found[0]["loss"]


@pytest.mark.parametrize("layout", ["single", "tp2", "pp2", "dp2"], indirect=True)
def test_held_out_answers_are_those_of_plain_transformers(layout, inputs):
    """Every source's first conversations up to 30 trained tokens each; weights do not count."""
    model = AutoModelForCausalLM.from_pretrained(inputs / "llama", dtype=torch.float64)
    sums: dict[str, list[float]] = {"pl.jsonl": [], "en.jsonl": []}
    held_out = list(conversations(inputs, "held_out"))
    with torch.no_grad():
        for name, part in (("pl.jsonl", held_out[:7]), ("en.jsonl", held_out[7:])):
            for ids, trained, _ in part:
                if len(sums[name]) >= 30:
                    break
                logits = model(ids[None, :-1]).logits[0].log_softmax(-1)
                sums[name] += (-logits.gather(-1, ids[1:, None]).squeeze(-1))[trained[1:]].tolist()
    layout["sft packed"]
    before = json.loads((layout.path / "packed" / "sft" / "metrics.jsonl").read_text().splitlines()[0])
    assert before["held_out_loss"] == pytest.approx(np.mean(sums["pl.jsonl"] + sums["en.jsonl"]), rel=1e-5)
    by_source = {name: np.mean(each) for name, each in sums.items()}
    assert before["held_out_loss_by_source"] == pytest.approx(by_source, rel=1e-5)
    assert before["held_out_loss_by_language"] == pytest.approx({k[:2]: v for k, v in by_source.items()}, rel=1e-5)
