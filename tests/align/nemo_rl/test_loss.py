"""NeMo-RL's loss with our divisor, against losses/grpo.py in float64.

`theirs` is written after its definition, token-level: sum of clipped losses and k3 over counted tokens, divided by what
it is given. With a checkout the same tests hold NeMo-RL's own class.
"""

from __future__ import annotations

import enum
from typing import Any, Optional

import pytest
import torch
from upstream import CHECKOUT, defined

from bielik_nemo.align.nemo_rl.loss import PER_TOKEN, Loss
from bielik_nemo.losses.grpo import advantages, grpo

T = 7


class Theirs:
    """As NeMo-RL computes it; `by_sequence` is its token_level_loss: false."""

    loss_type, input_type = "type", "input"

    def __init__(self, kl: float, by_sequence: bool = False):
        self.reference_policy_kl_penalty, self.by_sequence = kl, by_sequence

    def __call__(self, next_token_logprobs, data, global_valid_seqs, global_valid_toks):
        shifted = {name: data[name][:, 1:] for name in ("advantages", "prev_logprobs", "reference_policy_logprobs")}
        tokens = data["token_mask"][:, 1:]
        ratio = (next_token_logprobs - shifted["prev_logprobs"]).exp()
        a = shifted["advantages"]
        each = torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.28))
        apart = shifted["reference_policy_logprobs"] - next_token_logprobs
        each = each + self.reference_policy_kl_penalty * (apart.exp() - 1 - apart)
        samples = data["sample_mask"]
        if self.by_sequence:
            loss = ((each * tokens).sum(1) / tokens.sum(1) * samples).sum() / global_valid_seqs
        else:
            loss = (each * tokens * samples[:, None]).sum() / global_valid_toks
        probs_ratio = (ratio * tokens * samples[:, None]).sum() / global_valid_toks
        return loss, {"loss": loss.item(), "probs_ratio": probs_ratio.item()}


def theirs(kl: float, normalization: str) -> Any:
    """NeMo-RL's class from a checkout, otherwise `Theirs`."""
    if not CHECKOUT:
        return Theirs(kl, normalization == "answer")
    from pydantic import BaseModel

    given: dict[str, Any] = {"torch": torch, "enum": enum, "BaseModel": BaseModel, "Optional": Optional, "Any": Any}
    given |= {"BatchedDataDict": dict, "Tensor": torch.Tensor, "LossFunction": object, "ClippedPGLossDataDict": dict}
    defined("nemo_rl/algorithms/loss/interfaces.py", ("LossType", "LossInputType"), given)
    defined("nemo_rl/algorithms/utils.py", ("masked_mean", "calculate_kl"), given)
    found = defined("nemo_rl/algorithms/loss/loss_functions.py", ("ClippedPGLossConfig", "ClippedPGLossFn"), given)
    found["ClippedPGLossConfig"].model_rebuild(_types_namespace=given)
    config = found["ClippedPGLossConfig"](
        token_level_loss=normalization != "answer",
        ratio_clip_min=0.2,
        ratio_clip_max=0.28,
        reference_policy_kl_penalty=kl,
        kl_input_clamp_value=None,
        kl_output_clamp_value=None,
    )
    return found["ClippedPGLossFn"](config)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two groups of three answers of 1 to 6 tokens behind prompts of 2; the second group has no signal."""
    random = torch.Generator().manual_seed(0)

    def drawn() -> torch.Tensor:
        return torch.randn(6, 9, generator=random, dtype=torch.float64).mul(0.4).sub(1)

    lengths = torch.tensor([3, 6, 1, 4, 2, 5])
    places = torch.arange(9)[None]
    mask = ((places >= 2) & (places < 2 + lengths[:, None])).double()
    rewards = torch.tensor([[1.0, 0.0, 0.5], [1.0, 1.0, 1.0]], dtype=torch.float64)
    advantage = advantages(rewards, scale=False).reshape(6, 1).expand(6, 9)
    return {
        "policy": drawn(),
        "advantages": advantage,
        "prev_logprobs": drawn(),
        "generation_logprobs": drawn(),
        "reference_policy_logprobs": drawn(),
        "token_mask": mask,
        "sample_mask": torch.ones(6, dtype=torch.float64),
    }


def ours(batch: dict[str, torch.Tensor], normalization: str, kl: float, rows: slice) -> torch.Tensor:
    """`losses.grpo` on the same answers, one to a sequence, and their number."""
    names = ("policy", "prev_logprobs", "reference_policy_logprobs", "advantages", "token_mask")
    policy, old, reference, advantage, mask = (batch[name][rows, 1:].T for name in names)
    settings = {"normalization": normalization, "max_tokens": T, "clip_low": 0.2, "clip_high": 0.28, "kl": kl}
    answers = torch.where(mask > 0, 0, -1)
    total, _, _ = grpo(policy, old, reference, advantage, mask, answers, **settings)
    return total


def computed(loss: Loss, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss and its measures of two micro-batches, which NeMo-RL adds."""
    tokens, total, measured = batch["token_mask"].sum(), 0.0, {}
    for rows in (slice(0, 4), slice(4, 6)):
        data = {name: each[rows] for name, each in batch.items() if name != "policy"}
        part, found = loss(batch["policy"][rows, 1:], data, torch.tensor(6.0), tokens)
        total = total + part
        measured = {name: measured.get(name, 0.0) + value for name, value in found.items()}
    return total, measured


@pytest.mark.parametrize("normalization", ["answer", "tokens", "constant"])
@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_means_are_those_of_our_loss(batch, normalization, kl):
    """All answers count: N = 6; tokens 3 + 6 + 1 + 4 + 2 + 5 = 21; constant 6 * 7 = 42."""
    batch["policy"].requires_grad_(True)
    loss = Loss(theirs(kl, normalization), T if normalization == "constant" else None, filter_groups=False)
    found, _ = computed(loss, batch)
    expected = ours(batch, normalization, kl, slice(0, 6)) / (21 if normalization == "tokens" else 6)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    if not kl:  # NeMo-RL's gradient of the divergence has another part as well
        gradients = [torch.autograd.grad(each, batch["policy"])[0] for each in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-9)


def test_groups_without_signal_add_nothing_and_count(batch):
    """What is left are the answers 0 and 1, divided by all 6: the third has the mean of its group, and no advantage."""
    loss = Loss(theirs(0.1, "constant"), T, filter_groups=True)
    found, _ = computed(loss, batch)
    torch.testing.assert_close(found, ours(batch, "constant", 0.1, slice(0, 2)) / 6, rtol=1e-7, atol=1e-9)


def test_measures_stay_means_over_tokens(batch):
    """The ratio's mean is the same with any divisor of the loss; the mismatch is |prev - generation| over 21 tokens."""
    by_tokens, plain = computed(Loss(theirs(0.0, "tokens"), None, False), batch)
    by_constant, measured = computed(Loss(theirs(0.0, "constant"), T, False), batch)
    assert by_constant.item() == pytest.approx(by_tokens.item() * 21 / 42)
    apart = (batch["prev_logprobs"] - batch["generation_logprobs"]).abs() * batch["token_mask"]
    assert measured["mismatch"] == pytest.approx(apart.sum().item() / 21)
    for name in {"probs_ratio", *PER_TOKEN} & measured.keys() - {"kl_penalty"}:
        assert measured[name] == pytest.approx(plain[name]), name


def test_nemo_rl_sees_what_it_asks_a_loss_for():
    loss = Loss(Theirs(0.3), T, True)
    assert (loss.loss_type, loss.input_type, loss.reference_policy_kl_penalty) == ("type", "input", 0.3)
