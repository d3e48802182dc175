"""DPO and DPO-Positive against hand arithmetic and their definitions in float64.

All cases of random pairs are drawn so that the chosen answer is below the reference in about half of them.
"""

import math

import pytest
import torch
from torch import Tensor

from bielik_nemo.losses import answer_log_probs, dpo, dpo_positive

LN2 = math.log(2)


def pairs(*rows: tuple[float, float, float, float]) -> list[Tensor]:
    """Policy and reference of chosen and rejected answers, the policy's asking for gradients."""
    given = torch.tensor(rows, dtype=torch.float64).unbind(-1)
    return [each.clone().requires_grad_(i < 2) for i, each in enumerate(given)]


def drawn(count: int = 64, seed: int = 0) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return pairs(*(-20 + 4 * torch.randn(count, 4, dtype=torch.float64, generator=random)).tolist())


def gradients(total: Tensor, given: list[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.autograd.grad(total, given[:2])


def test_by_hand():
    """beta 1/2: chosen -2 against -6, rejected -5 against -3: log-ratios 4 and -2, z = 1/2 (4 + 2) = 3.

    L = -log sigma(3) = log(1 + e^-3) = 0.0485874. dL/dz = -sigma(-3) = -0.0474259, and so -+ half of it, 0.0237129.
    Rewards 1/2 * 4 = 2 and 1/2 * -2 = -1, margin 3.
    """
    given = pairs((-2, -5, -6, -3))
    total, count, metrics = dpo(*given, beta=0.5)
    assert total.item() == pytest.approx(0.0485874, abs=1e-7) and count.item() == 1
    up, down = gradients(total, given)
    assert (up.item(), down.item()) == (pytest.approx(-0.0237129, abs=1e-7), pytest.approx(0.0237129, abs=1e-7))
    assert {name: each.item() for name, each in metrics.items()} == {
        "chosen_reward": 2,
        "rejected_reward": -1,
        "margin": 3,
        "accuracy": 1,
        "chosen_log_prob": -2,
        "chosen_log_ratio": 4,
        "rejected_log_ratio": -2,
        "penalized": 0,
    }


def test_dpo_positive_by_hand():
    """beta 1/2, lambda 2: chosen -4 against -3, rejected -9 against -3: log-ratios -1 and -6, the chosen 1 nat below.

    DPO: z = 1/2 (-1 + 6) = 2.5, though the chosen answer has become less likely. Bielik: 2.5 - 2 * 1 = 0.5, L = log(1 +
    e^-0.5) = 0.474077, dL/d chosen = -(0.5 + 2) sigma(-0.5) = -2.5 * 0.377541 = -0.943852, dL/d rejected = 0.5 *
    0.377541 = 0.188770. Smaug: 1/2 (5 - 2 * 1) = 1.5, L = log(1 + e^-1.5) = 0.201413, dL/d chosen = -(0.5 + 0.5 * 2)
    sigma(-1.5) = -1.5 * 0.182426 = -0.273638.
    """
    given = pairs((-4, -9, -3, -3))
    total, _, metrics = dpo_positive(*given, beta=0.5, penalty=2, form="bielik")
    assert total.item() == pytest.approx(0.474077, abs=1e-6)
    assert [each.item() for each in gradients(total, given)] == pytest.approx([-0.943852, 0.188770], abs=1e-6)
    assert (metrics["penalized"].item(), metrics["margin"].item()) == (1, 2.5)
    total, _, _ = dpo_positive(*given, beta=0.5, penalty=2, form="smaug")
    assert total.item() == pytest.approx(0.201413, abs=1e-6)
    assert gradients(total, given)[0].item() == pytest.approx(-0.273638, abs=1e-6)


def test_a_beta_of_its_own_for_the_rejected_answer():
    """beta 0.5 and 0.1, lambda 1: log-ratios -1 and -6: z = 0.5 * -1 - 0.1 * -6 - 1 * 1 = -0.9; smaug: -0.9 + 0.5."""
    given = pairs((-4, -9, -3, -3))
    for form, z in (("bielik", -0.9), ("smaug", -0.4)):
        total, _, metrics = dpo_positive(*given, beta=0.5, beta_rejected=0.1, penalty=1, form=form)
        assert total.item() == pytest.approx(math.log(1 + math.exp(-z)))
    assert metrics["chosen_reward"].item() == pytest.approx(-0.5)
    assert metrics["rejected_reward"].item() == pytest.approx(-0.6)


def test_label_smoothing_by_hand():
    """z = 3 as in the first test, e = 0.1: 0.9 log(1 + e^-3) + 0.1 log(1 + e^3) = 0.9 * 0.0485874 + 0.1 * 3.0485874."""
    total, _, _ = dpo(*pairs((-2, -5, -6, -3)), beta=0.5, label_smoothing=0.1)
    assert total.item() == pytest.approx(0.3485874, abs=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_policy_and_reference_alike_cost_ln_2(smoothing: float):
    """And there is no penalty in the gradient yet: -+ beta (1/2 - e) for each of three pairs."""
    given = pairs((-2, -5, -2, -5), (-30, -1, -30, -1), (0, 0, 0, 0))
    total, count, metrics = dpo_positive(*given, beta=0.1, penalty=2.5, label_smoothing=smoothing)
    assert (total / count).item() == pytest.approx(LN2)
    assert metrics["penalized"].item() == metrics["accuracy"].item() == 0
    slope = torch.full((3,), 0.1 * (0.5 - smoothing), dtype=torch.float64)
    torch.testing.assert_close(gradients(total, given), (-slope, slope))


@pytest.mark.parametrize("options", [{}, {"beta_rejected": 0.02, "label_smoothing": 0.1}])
def test_the_two_forms_are_one(options: dict[str, float]):
    """bielik(beta, lambda) == smaug(beta, lambda / beta), by value, gradient and metrics; and not for one lambda."""
    given = drawn()
    bielik, _, metrics = dpo_positive(*given, beta=0.05, penalty=2.5, form="bielik", **options)
    smaug, _, others = dpo_positive(*given, beta=0.05, penalty=50, form="smaug", **options)
    torch.testing.assert_close(bielik, smaug)
    torch.testing.assert_close(gradients(bielik, given), gradients(smaug, given))
    assert metrics == others
    assert dpo_positive(*given, beta=0.05, penalty=2.5, form="smaug", **options)[0] < 0.5 * bielik


def test_without_penalty_it_is_dpo():
    given = drawn()
    for form in ("bielik", "smaug"):
        torch.testing.assert_close(
            dpo_positive(*given, beta=0.1, penalty=0, form=form), dpo(*given, beta=0.1), rtol=0, atol=0
        )


@pytest.mark.parametrize("form", ["bielik", "smaug"])
def test_the_gradient_always_raises_a_chosen_answer_below_the_reference(form: str):
    """dL/dlog pi(y_w) = -(beta + lambda) sigma(-z) there: 26 times DPO's and more.

    26 is (beta + lambda) / beta, and z is less. Where it is not below, the two losses are one.
    """
    given, beta = drawn(256), 0.1
    penalty = 2.5 if form == "bielik" else 25
    positive, plain = (
        gradients(loss(*given, beta=beta, **options)[0], given)[0]
        for loss, options in ((dpo_positive, {"penalty": penalty, "form": form}), (dpo, {}))
    )
    chosen, rejected = (given[i].detach() - given[i + 2] for i in (0, 1))
    below = chosen < 0
    assert 64 < below.sum() < 192
    z = beta * (chosen - rejected) + 2.5 * chosen.clamp(max=0)
    torch.testing.assert_close(positive[below], -(beta + 2.5) * (-z[below]).sigmoid())
    assert (positive[below] < 26 * plain[below]).all()
    torch.testing.assert_close(positive[~below], plain[~below])


def test_on_a_shared_token_dpo_lowers_the_chosen_answer_and_dpo_positive_raises_it():
    """Two tokens, two words, one matrix of logits: what is trained for one answer moves the other.

    Both answers begin with word 0, and the rejected one says it twice: chosen 0 1, rejected 0 0 0, each position with
    the same logits (a, b), as of a model that cannot tell them apart. log pi(0) = log s with s = sigma(a - b), so that
    log pi(y_w) = log s + log(1 - s) and log pi(y_l) = 3 log s; by x = a - b their slopes are 1 - 2s and 3 (1 - s).

    At x = -1, s = 0.268941: slopes 0.462117 and 2.193176. With beta 0.1, and the chosen answer one nat below the
    reference, z = -0.1 and dL/dx = sigma(0.1) * 0.1 * (-0.462117 + 2.193176) > 0: descent lowers x, and with it the
    chosen answer. DPO-P with lambda 2.5: z = -2.6, dL/dx = sigma(2.6) * (-2.6 * 0.462117 + 0.1 * 2.193176) < 0: descent
    raises x, and with it the chosen answer.
    """

    def slope(loss, **options) -> float:
        x = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
        logits = torch.stack([x, torch.zeros_like(x)]).expand(5, 1, 2)
        labels, answers = torch.tensor([[0, 1, 0, 0, 0]]).T, torch.tensor([[0, 0, 1, 1, 1]]).T
        (sums,), _ = answer_log_probs(logits, labels, torch.ones(5, 1), answers, 2)
        given = sums[:1], sums[1:], sums.detach()[:1] + 1, sums.detach()[1:]
        return torch.autograd.grad(loss(*given, beta=0.1, **options)[0], x)[0].item()

    assert slope(dpo) == pytest.approx(0.1731059 / (1 + math.exp(-0.1)), rel=1e-5)
    assert slope(dpo_positive, penalty=2.5) == pytest.approx(-0.982187 / (1 + math.exp(-2.6)), rel=1e-5)


@pytest.mark.parametrize("absent", [(True, True), (True, False), (False, True)])
def test_pairs_that_are_not_there_neither_count_nor_spoil_the_gradient(absent: tuple[bool, bool]):
    given = drawn(5)
    for at, missing in zip((2, 3), absent, strict=True):
        if missing:
            given[at][[1, 4]] = math.nan
    total, count, metrics = dpo_positive(*given, beta=0.1, penalty=2.5, label_smoothing=0.1)
    kept = [0, 2, 3]
    wanted, three, others = dpo_positive(*(each[kept] for each in given), beta=0.1, penalty=2.5, label_smoothing=0.1)
    assert count == three == 3
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(metrics, others)
    for one, two in zip(gradients(total, given), gradients(wanted, given), strict=True):
        assert torch.equal(one, two) and not one[[1, 4]].any()


def test_no_pair_at_all():
    given = pairs((-1, -2, math.nan, math.nan))
    total, count, metrics = dpo(*given, beta=0.1)
    assert total.item() == count.item() == 0 and not any(each.item() for each in metrics.values())
    assert not any(each.any() for each in gradients(total, given))


def test_far_apart_answers_overflow_nothing():
    """z = 0.1 * -+20000: the loss is 2000 or 0, the slope beta or 0; fp32."""
    given = [torch.tensor(each, requires_grad=True) for each in ([-2e4, 0], [0, -2e4])] + [torch.zeros(2)] * 2
    total, _, _ = dpo(*given, beta=0.1)
    assert total.item() == pytest.approx(2000) and total.dtype == torch.float32
    torch.testing.assert_close(gradients(total, given)[0], torch.tensor([-0.1, 0]))


def test_what_does_not_go_together():
    given = drawn(3)
    with pytest.raises(ValueError, match=r"\[\[3\], \[3\], \[2\], \[3\]\]: they must agree"):
        dpo(given[0], given[1], given[2][:2], given[3], beta=0.1)
    with pytest.raises(ValueError, match="form='paper': allowed are bielik, smaug"):
        dpo_positive(*given, beta=0.1, penalty=1, form="paper")
