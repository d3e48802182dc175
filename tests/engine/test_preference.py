"""Preference optimisation under every layout: the first step is that of plain transformers, layouts and curves agree.

The model `llama` learns from 4 pairs a step, packed in sequences of 32, against references of a model that differs a
little: every pair has a log-ratio that is not 0, and the penalty is at work for some. The reference of the test is, in
float64, each answer's conversation run alone through plain transformers:

    loss = 1/4 * sum_p -log sigma(0.1 (D_w - D_l) - 2.5 max(0, -D_w)),     D = log pi - log ref
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

on_two_ranks = pytest.mark.parametrize("layout", ["tp2", "pp2", "dp2"], indirect=True)


def training(metrics: list[dict]) -> list[dict]:
    return [record for record in metrics if "loss" in record]


@pytest.fixture(scope="module")
def reference(single, inputs) -> dict[str, float]:
    """Loss, gradient norm and what is logged, of the first step."""
    single["distill prefer"]
    batch = torch.load(single.path / "prefer" / "batch.pt", weights_only=True)
    plain = AutoModelForCausalLM.from_pretrained(inputs / "llama", dtype=torch.float64)
    ratios, tokens, log_probs = [], [], []
    for row in range(len(batch["tokens"])):
        starts = [*(batch["position_ids"][row] == 0).nonzero().flatten().tolist(), 32]
        for answer in range(2 * int((~batch["reference"][row, :, 0].isnan()).sum())):
            place = slice(starts[answer], starts[answer + 1])
            log_q = plain(batch["tokens"][row : row + 1, place]).logits[0].log_softmax(-1)
            mine = batch["answers"][row, place] == answer
            each = log_q.gather(-1, batch["labels"][row, place, None])[mine]
            assert len(each)
            ratios.append(each.sum() - batch["reference"][row].flatten()[answer].double())
            log_probs.append(each.sum().item())
            tokens.append(len(each))
    chosen, rejected = torch.stack(ratios[::2]), torch.stack(ratios[1::2])
    assert len(chosen) == 4
    loss = -(0.1 * (chosen - rejected) - 2.5 * (-chosen).clamp(min=0)).sigmoid().log().mean()
    loss.backward()
    squares = [parameter.grad.square().sum() for parameter in plain.parameters()]
    per_token = (chosen / torch.tensor(tokens[::2])).mean(), (rejected / torch.tensor(tokens[1::2])).mean()
    return {
        "loss": loss.item(),
        "grad_norm": torch.stack(squares).sum().sqrt().item(),
        "chosen_reward": 0.1 * chosen.mean().item(),
        "rejected_reward": 0.1 * rejected.mean().item(),
        "margin": 0.1 * (chosen - rejected).mean().item(),
        "accuracy": (chosen > rejected).double().mean().item(),
        "chosen_log_prob": sum(log_probs[::2]) / 4,
        "chosen_log_ratio": chosen.mean().item(),
        "rejected_log_ratio": rejected.mean().item(),
        "penalized": (chosen < 0).double().mean().item(),
        "chosen_log_ratio_per_token": per_token[0].item(),
        "rejected_log_ratio_per_token": per_token[1].item(),
    }


@pytest.mark.parametrize("layout", ["single", "tp2", "pp2", "dp2"], indirect=True)
def test_first_step_is_that_of_plain_transformers(layout, reference):
    first = training(layout.metrics("prefer"))[0]
    assert 0 < reference["penalized"] < 1 and abs(reference["loss"] - math.log(2)) > 0.05
    for name, value in reference.items():
        assert first[name] == pytest.approx(value, rel=1e-4, abs=1e-4), name
    assert first["loss"] == pytest.approx(reference["loss"], rel=1e-5)


@on_two_ranks
def test_runs_are_the_same_under_every_layout(layout, single):
    """Six steps, the held-out pairs included, but for the tokens of a step, which may have an empty sequence more."""
    one, two = single.metrics("prefer"), layout.metrics("prefer")
    assert len(one) == len(two) == 9
    for both in zip(one, two, strict=True):
        for name in ("held_out_loss_by_source", "held_out_loss_by_language"):
            a, b = (record.pop(name, {}) for record in both)
            assert b == pytest.approx(a, rel=1e-3)
        a, b = ({name: value for name, value in record.items() if name != "tokens"} for record in both)
        assert b == pytest.approx(a, rel=1e-3, abs=1e-4)


def test_it_learns(single):
    """On 30 of the 40 pairs, of which six steps have seen 24."""
    measured = [record for record in single.metrics("prefer") if "held_out_loss" in record]
    assert len(measured) == 3
    assert measured[-1]["held_out_loss"] < measured[0]["held_out_loss"]
    assert measured[-1]["held_out_chosen_log_ratio"] > measured[0]["held_out_chosen_log_ratio"]
    for last in measured:
        by_source = last.pop("held_out_loss_by_source")
        assert last.pop("held_out_loss_by_language") == {"pl": by_source["pl.jsonl"], "en": by_source["en.jsonl"]}
        assert last["held_out_loss"] == pytest.approx(sum(by_source.values()) / 2)
    assert measured[0].keys() == {
        "step", "held_out_loss", "held_out_accuracy", "held_out_margin", "held_out_chosen_log_ratio",
        "held_out_rejected_log_ratio", "tokens",
    }  # fmt: skip


def test_cached_references_give_the_curve_of_a_live_reference(single):
    """A second, frozen model beside it says in every step what the cache said before; to 1e-4 after six steps."""
    cached, live = (training(single.metrics(name)) for name in ("prefer", "online"))
    for one, two in zip(cached, live, strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-4)
    assert cached != live  # it has not simply read the cache


@on_two_ranks
def test_references_are_the_same_under_every_layout(layout, single):
    assert layout["refer"] == single["refer"] == "done"
    one, two = (load_file(each.path / "log_probs.safetensors") for each in (single, layout))
    shapes = {"train/00000": (24, 2), "train/00001": (16, 2), "held_out/00000": (6, 2)}
    assert {name: each.shape for name, each in one.items()} == shapes
    for name, values in one.items():
        torch.testing.assert_close(torch.from_numpy(two[name]), torch.from_numpy(values), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", ["single", "tp2", "pp2"], indirect=True)
def test_references_of_another_model_are_refused_before_anything_is_updated(layout, reference):
    """The loss and the log-ratios per token that the first step would have had, and no step."""
    assert layout["refused"] == (
        f"dpo: the first loss is {reference['loss']:.4f}, allowed: ln 2 = 0.6931; log-ratios per token of chosen and "
        f"rejected answers are {reference['chosen_log_ratio_per_token']:.4f} and "
        f"{reference['rejected_log_ratio_per_token']:.4f}, allowed: 0; all to dpo.gate_tolerance=0.02: the model is "
        "not the one that `reference` measured"
    )
    assert [each["step"] for each in map(json.loads, (layout.path / "refused" / "metrics.jsonl").open())] == [0]
