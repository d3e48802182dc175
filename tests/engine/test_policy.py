"""GRPO under every layout: the first step is that of plain transformers, layouts agree, a killed run ends the same.

The model `llama` answers 4 prompts 4 times each, and learns from two groups at a time, held to a model that differs a
little; see `ranks.rewarded`. The reference of the test is, in float64, each prompt with its answer run alone through
plain transformers: with pi = pi_old in the first step

    loss = 1/N sum_i 1/|o_i| sum_t -rho A_i + 0.1 (ref/pi - log(ref/pi) - 1),   rho = pi / pi_old

over the answers of the update, N those of both of its groups, also where one group has no signal and takes no part.
"""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM


def training(metrics: list[dict]) -> list[dict]:
    return [record for record in metrics if "loss" in record]


def first_step(single, inputs, name: str, normalization: str = "answer", kl: float = 0.1) -> dict[str, float]:
    """What its batch says through plain transformers."""
    assert single[f"distill {name}"] == "done"
    batch = torch.load(single.path / name / "batch.pt", weights_only=True)
    plain = AutoModelForCausalLM.from_pretrained(inputs / "llama", dtype=torch.float64)
    total, divergence, tokens, answers = 0.0, 0.0, 0, 0
    for row in range(len(batch["tokens"])):
        starts = [*(batch["position_ids"][row] == 0).nonzero().flatten().tolist(), batch["tokens"].shape[1]]
        for number in range(int(batch["answers"][row].max()) + 1):
            place = slice(starts[number], starts[number + 1])
            mine = batch["answers"][row, place] == number
            log_q = plain(batch["tokens"][row : row + 1, place]).logits[0].log_softmax(-1)
            pi = log_q.gather(-1, batch["labels"][row, place, None])[mine].flatten()
            old, held, advantage = (batch[key][row, place][mine].double() for key in ("old", "reference", "advantage"))
            torch.testing.assert_close(old, pi.detach(), atol=1e-4, rtol=0)
            to = held - pi
            each = -(pi - old).exp() * advantage + kl * (to.exp() - to - 1)
            total = total + each.sum() / {"answer": len(pi), "constant": 8, "tokens": 1}[normalization]
            divergence += (to.exp() - to - 1).sum().item()
            tokens, answers = tokens + len(pi), answers + 1
    loss = total * batch["share"][0] / (tokens if normalization == "tokens" else answers)
    loss.backward()
    squares = [parameter.grad.square().sum() for parameter in plain.parameters()]
    found = {"loss": loss.item(), "grad_norm": torch.stack(squares).sum().sqrt().item()}
    return found | ({"kl": divergence / tokens} if kl else {}) | {"share": batch["share"][0].item(), "answers": answers}


@pytest.fixture(scope="module")
def reference(single, inputs) -> dict[str, float]:
    return first_step(single, inputs, "policy")


@pytest.mark.parametrize("layout", ["single", "tp2", "pp2", "dp2"], indirect=True)
def test_first_step_is_that_of_plain_transformers(layout, reference):
    first = training(layout.metrics("policy"))[0]
    assert reference["kl"] > 1e-3
    for name in ("loss", "grad_norm", "kl"):
        assert first[name] == pytest.approx(reference[name], rel=1e-4, abs=1e-5), name
    assert (first["clipped"], first["drift"]) == (0, pytest.approx(0, abs=1e-5))
    assert first["mismatch"] < 1e-5  # what sampled, with its cache, said the same as the trainer


@pytest.mark.parametrize("layout", ["tp2", "pp2", "dp2"], indirect=True)
def test_runs_are_the_same_under_every_layout(layout, single):
    """Six steps of one and a half rollouts: the same answers, rewards and updates."""
    one, two = single.metrics("policy"), layout.metrics("policy")
    assert len(one) == len(two) == 9
    for a, b in zip(one, two, strict=True):
        for record in (a, b):
            by_source = record.pop("held_out_reward_by_source", {})
            record.update({f"reward of {name}": value for name, value in by_source.items()})
        assert b == pytest.approx(a, rel=1e-3, abs=1e-4)


def test_later_updates_of_a_rollout_are_off_policy(single):
    """The first is on policy; the second is of other answers, and the model has moved; a new rollout begins with 5."""
    steps = training(single.metrics("policy"))
    drift = [each["drift"] for each in steps]
    assert max(drift[0], drift[4]) < 1e-5 < 1e-3 < min(drift[1:4])
    assert any(each["clipped"] for each in steps[1:4])
    assert len({each["reward"] for each in steps[:4]}) == 1 != len({each["reward"] for each in steps})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("constant", {"normalization": "constant", "kl": 0.0}),
        ("tokens", {"normalization": "tokens"}),
        ("unfiltered", {}),
        ("alone", {}),
    ],
)
def test_other_settings(name: str, settings: dict, single, inputs):
    """Dr. GRPO and the token mean; with all groups; an answer to a sequence, the same step as with several."""
    first, want = training(single.metrics(name))[0], first_step(single, inputs, name, **settings)
    for key in {"loss", "grad_norm", "kl"} & want.keys():
        assert first[key] == pytest.approx(want[key], rel=1e-4, abs=1e-5), key


def test_a_group_without_signal_takes_no_part(single, inputs, reference):
    """Of every second prompt all answers are worth 1/2: the first update has one group of two, 4 of 8 answers."""
    assert (reference["share"], reference["answers"]) == (0.5, 4)
    whole = first_step(single, inputs, "unfiltered")
    assert (whole["share"], whole["answers"]) == (1.0, 8)
    rows = (single.path / "policy" / "grpo" / "rollouts" / "00000.jsonl").read_text().splitlines()
    found = [json.loads(row) for row in rows]
    assert len(found) == 16 and {row["verdict"] for row in found} == {"correct", "wrong", "unverifiable"}
    assert {row["value"] for row in found if int(row["prompt"]) % 2} == {0.5}
    known = [row["value"] for row in found if row["verdict"] != "unverifiable"]
    first = training(single.metrics("policy"))[0]
    assert first["reward"] == pytest.approx(sum(known) / len(known))
    assert first["unverifiable"] == pytest.approx(1 - len(known) / 16)
    assert first["signal"] <= sum(1 - int(row["prompt"]) % 2 for row in found) / 16


def test_a_killed_run_ends_the_same(resumed, single):
    """Killed in its fourth step, between updates of one rollout; it goes on after the second with the same answers."""
    assert resumed.metrics("revived") == single.metrics("policy")
    answers = [
        [(path.name, path.read_text()) for path in sorted((single.path / name / "grpo" / "rollouts").iterdir())]
        for name in ("policy", "revived")
    ]
    assert answers[0] == answers[1] and [name for name, _ in answers[0]] == ["00000.jsonl", "00001.jsonl"]


def test_what_samples_must_be_what_trains(single):
    assert single["mismatched"] == (
        "grpo: rollout 0: log-probabilities differ by 0.0500 nats per token in the mean between "
        "grpo.rollouts=megatron, which samples, and the trainer, allowed: grpo.mismatch_tolerance=0.02"
    )


def test_rewards_that_fail_stop_it_with_the_answers_kept(single):
    """Already before the first update; the held-out tasks, whose rewards fail as well, count as not verifiable."""
    path = single.path / "failing" / "grpo" / "rollouts" / "00000.jsonl"
    assert single["failing"] == (
        "grpo: rollout 0: the reward of 16 of 16 answers failed, allowed: 1.00% (grpo.rewards.max_error_share); the "
        f"first: verdicts.raising raised ValueError: no idea; all: {path}"
    )
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    assert len(rows) == 16 and {row["error"] for row in rows} == {"verdicts.raising raised ValueError: no idea"}
    (measured,) = map(json.loads, (single.path / "failing" / "grpo" / "metrics.jsonl").open())
    assert (measured["held_out_unverifiable"], measured["held_out_reward"]) == (1, 0)
