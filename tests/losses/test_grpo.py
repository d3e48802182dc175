"""GRPO and Dr. GRPO against hand arithmetic, their definitions in float64, and REINFORCE."""

import math

import pytest
import torch
from torch import Tensor

from bielik_nemo.losses import advantages, grpo

LN2 = math.log(2)
OPTIONS = {"normalization": "answer", "max_tokens": 8, "clip_low": 0.2, "clip_high": 0.2, "kl": 0.0}

_ = -1
ANSWERS = torch.tensor([[_, 0, 0, 0, _, 1, 1, _], [0, _, 1, 1, 1, 1, 2, 2]]).T  # [s, b]


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def drawn(seed: int = 0, spread: float = 0.3) -> dict[str, Tensor]:
    """Log-probabilities near each other and an advantage for each answer; garbage where there is none."""
    random = torch.Generator().manual_seed(seed)
    old = -torch.rand(ANSWERS.shape, dtype=torch.float64, generator=random) * 3
    policy, reference = (
        old + spread * torch.randn(ANSWERS.shape, dtype=torch.float64, generator=random) for _ in range(2)
    )
    each = torch.randn(3, 2, dtype=torch.float64, generator=random)
    found = {"policy": policy, "old": old, "reference": reference, "advantage": each.gather(0, ANSWERS.clamp(min=0))}
    for name in ("old", "reference", "advantage"):
        found[name] = found[name].masked_fill(ANSWERS < 0, 1e9)
    return found | {"mask": (ANSWERS >= 0).double(), "answers": ANSWERS, "policy": policy.requires_grad_()}


def test_advantages_by_hand():
    """Rewards 1, 0, 0, 1: mean 1/2; deviation of a sample sqrt(4 * 1/4 / 3) = 0.577350; 0.5 / 0.577350 = 0.866025.

    3, 1 and some that are not known: mean 2, +-1, deviation sqrt(2 / 1) = 1.414214, +-0.707107. All 0.3: nothing. One
    known of a group, or none: nothing.
    """
    nan = math.nan
    rewards = torch.tensor([[1, 0, 0, 1], [3, 1, nan, nan], [0.3, 0.3, 0.3, 0.3], [nan, 2, nan, nan], [nan] * 4])
    want = torch.tensor([[0.5, -0.5, -0.5, 0.5], [1, -1, 0, 0], *[[0.0] * 4] * 3])
    torch.testing.assert_close(advantages(rewards, scale=False), want)
    assert torch.equal(advantages(rewards, scale=False)[2:], want[2:])
    want = torch.tensor([[1, -1, -1, 1], [1, -1, 0, 0], *[[0.0] * 4] * 3])
    want[:2] *= torch.tensor([[0.866025], [0.707107]])
    torch.testing.assert_close(advantages(rewards, scale=True), want, atol=2e-6, rtol=0)
    assert torch.equal(advantages(rewards, scale=True)[2:], want[2:])


def test_by_hand():
    """One answer of two tokens, A = 2, e = 0.2, kl = 0.1; and one of a single token, A = -1.

    Token 1: rho = 2, clipped to 1.2: -min(4, 2.4) = -2.4, no gradient; ref/pi = 1: KL 0.
    Token 2: rho = 1/2, clipped to 0.8: -min(1, 1.6) = -1, gradient -rho A = -1; ref/pi = 2: 2 - log 2 - 1 = 0.306853,
    gradient 1 - ref/pi = -1.
    The first answer: ((-2.4) + (-1 + 0.0306853)) / 2 = -1.6846574; gradients 0 and (-1 - 0.1) / 2 = -0.55.
    Token 3: rho = 3/2, clipped to 1.2: -min(-1.5, -1.2) = 1.5, gradient 1.5; ref = pi.
    Answers: -1.6846574 + 1.5 = -0.1846574 over 2. Constant, T = 8: (-3.4 + 0.0306853 + 1.5) / 8 = -0.2336643.
    Tokens: -1.8693147 over 3.
    """
    policy = column(-1 + LN2, -1 - LN2, -2 + math.log(1.5)).requires_grad_()
    old, reference = column(-1, -1, -2), column(-1 + LN2, -1, -2 + math.log(1.5))
    given = (policy, old, reference, column(2, 2, -1), torch.ones(3, 1), torch.tensor([[0], [0], [1]]))
    want = {
        "answer": (-0.1846574, 2, [0, -0.55, 1.5]),
        "constant": (-0.2336643, 2, [0, -1.1 / 8, 1.5 / 8]),
        "tokens": (-1.8693147, 3, [0, -1.1, 1.5]),
    }
    for normalization, (loss, number, gradient) in want.items():
        total, count, metrics = grpo(*given, **OPTIONS | {"normalization": normalization, "kl": 0.1})
        assert (total.item(), count.item()) == (pytest.approx(loss, abs=1e-7), number)
        (found,) = torch.autograd.grad(total, policy)
        torch.testing.assert_close(found, column(*gradient))
    assert metrics["kl"].item() == pytest.approx(0.306853, abs=1e-6)
    assert (metrics["clipped"].item(), metrics["tokens"].item()) == (1, 3)
    assert metrics["drift"].item() == pytest.approx(2 * LN2 + math.log(1.5))
    assert metrics["entropy"].item() == pytest.approx(1 - LN2 + 1 + LN2 + 2 - math.log(1.5))


def test_an_asymmetric_clip_by_hand():
    """rho 1.25, A 1: free with e_high 0.28 (-1.25), held by 0.2 (-1.2). rho 0.7, A -1: held at 0.8 (+0.8)."""
    policy = column(math.log(1.25), math.log(0.7))
    given = (policy, column(0, 0), column(0, 0), column(1, -1), torch.ones(2, 1), torch.tensor([[0], [1]]))
    for high, first in ((0.28, -1.25), (0.2, -1.2)):
        total, _, _ = grpo(*given, **OPTIONS | {"clip_high": high})
        assert total.item() == pytest.approx(first + 0.8)


@pytest.mark.parametrize("normalization", ["answer", "constant", "tokens"])
@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_equals_the_definition(normalization: str, kl: float):
    """Token by token in python floats, with the gradient by finite differences; some ratios are beyond the clip."""
    given, options = drawn(), OPTIONS | {"normalization": normalization, "kl": kl, "clip_high": 0.3}

    def defined(policy: Tensor) -> float:
        total = 0.0
        for b in range(2):
            for number in range(3):
                places = [s for s in range(8) if ANSWERS[s, b] == number]
                for s in places:
                    named = (policy, given["old"], given["reference"], given["advantage"])
                    pi, old, ref, a = (float(each[s, b]) for each in named)
                    rho = math.exp(pi - old)
                    loss = -min(rho * a, min(max(rho, 0.8), 1.3) * a)
                    loss += kl * (math.exp(ref - pi) - (ref - pi) - 1)
                    total += loss / {"answer": len(places), "constant": 8, "tokens": 1}[normalization]
        return total

    total, count, metrics = grpo(**given, **options)
    assert metrics["clipped"] > 0
    assert total.item() == pytest.approx(defined(given["policy"]))
    assert count.item() == (12 if normalization == "tokens" else 5)
    total.backward()
    for s, b in [(1, 0), (3, 0), (4, 0), (0, 1), (1, 1), (5, 1), (7, 1)]:
        step = torch.zeros(ANSWERS.shape, dtype=torch.float64)
        step[s, b] = 1e-6
        slope = (defined(given["policy"] + step) - defined(given["policy"] - step)) / 2e-6
        assert given["policy"].grad[s, b].item() == pytest.approx(slope, abs=1e-8)


def test_on_policy_and_unclipped_it_is_reinforce_with_a_baseline():
    """With pi = pi_old the gradient is that of -1/N sum_i 1/|o_i| sum_t A_i log pi(o_it), A_i = r_i - mean r."""
    rewards = torch.tensor([[1.0, 0.0, 0.5, 0.25, 0.0]], dtype=torch.float64)
    (each,) = advantages(rewards, scale=False)
    per_token = torch.zeros(ANSWERS.shape, dtype=torch.float64)
    reinforce = torch.zeros((), dtype=torch.float64)
    given = drawn()
    policy = given["policy"]
    for place, (b, number) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]):
        own = ANSWERS[:, b] == number
        per_token[own, b] = each[place]
        reinforce = reinforce - (rewards[0, place] - rewards.mean()) * policy[own, b].mean() / 5
    given |= {"old": policy.detach(), "advantage": per_token}
    total, count, metrics = grpo(**given, **OPTIONS)
    (found,), (want,) = (torch.autograd.grad(x, policy) for x in (total / count, reinforce))
    torch.testing.assert_close(found, want)
    assert metrics["clipped"] == 0 and metrics["drift"] == 0


def test_sums_of_parts_are_the_sum_of_the_whole():
    """Whatever the micro-batches: one sequence at a time."""
    given = drawn()
    whole, number, metrics = grpo(**given, **OPTIONS | {"kl": 0.2})
    parts = [grpo(**{n: x[:, b : b + 1] for n, x in given.items()}, **OPTIONS | {"kl": 0.2}) for b in range(2)]
    assert sum(part[0] for part in parts).item() == pytest.approx(whole.item())
    assert sum(part[1] for part in parts) == number
    for name, each in metrics.items():
        assert sum(part[2][name] for part in parts).item() == pytest.approx(each.item())


def test_what_is_no_answer_has_no_gradient_and_no_nan():
    """Old log-probabilities of minus infinity outside answers; a batch without any answer is 0 of 0."""
    given = drawn()
    given["old"] = given["old"].masked_fill(ANSWERS < 0, -math.inf)
    total, _, _ = grpo(**given, **OPTIONS | {"kl": 0.2})
    (gradient,) = torch.autograd.grad(total, given["policy"])
    assert gradient.isfinite().all() and torch.equal(gradient != 0, ANSWERS >= 0)
    empty = given | {"answers": torch.full_like(ANSWERS, -1)}
    total, count, _ = grpo(**empty, **OPTIONS)
    assert (total.item(), count.item()) == (0, 0)


def test_errors():
    given = drawn()
    with pytest.raises(ValueError, match=r"\[8, 2\], \[8, 2\], \[8, 2\], \[8, 2\], \[7, 2\], \[8, 2\]"):
        grpo(**given | {"mask": given["mask"][1:]}, **OPTIONS)
    with pytest.raises(ValueError, match="'mean', allowed: answer, constant, tokens"):
        grpo(**given, **OPTIONS | {"normalization": "mean"})
