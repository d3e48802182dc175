"""Group relative policy optimisation (GRPO, arXiv 2402.03300, eq. 3) and Dr. GRPO (arXiv 2503.20783).

Of a prompt's G answers o_i with rewards r_i, and of token t of answer i with ratio rho = pi(o_it) / pi_old(o_it):

    l_it = -min(rho A_i, clip(rho, 1 - e_low, 1 + e_high) A_i) + kl (ref/pi - log(ref/pi) - 1)

    GRPO      A_i = (r_i - mean r) / std r    L = 1/N sum_i 1/|o_i| sum_t l_it    `answer`
    Dr. GRPO  A_i = r_i - mean r              L = 1/N sum_i 1/T sum_t l_it        `constant`
    token mean (DAPO, arXiv 2503.14476)       L = sum_it l_it / sum_i |o_i|       `tokens`

N is the number of answers of the batch, T the longest length that an answer may have. e_high above e_low is the clip of
DAPO. The last term of l_it is the low-variance estimate of KL(pi || ref), never negative.

Deviations: answers whose reward is not known take no part in their group; the standard deviation is that of a sample
(G - 1), and 1e-6 is added to it, as trainers do.
"""

from __future__ import annotations

import torch
from torch import Tensor

METRICS = ("kl", "clipped", "entropy", "drift", "tokens")
"""What is measured beside the loss; see `grpo`."""
NORMALIZATIONS = ("answer", "constant", "tokens")


def advantages(rewards: Tensor, scale: bool) -> Tensor:
    """How much better each answer is than its group: `[groups, g]` -> the same, 0 where there is nothing to compare.

    Args:
        rewards: of the answers to each prompt; NaN: not known.
        scale: divide by the group's standard deviation (GRPO); False: do not (Dr. GRPO).
    """
    known = ~rewards.isnan()
    number = known.sum(1, keepdim=True)
    mean = rewards.nansum(1, keepdim=True) / number.clamp(min=1)
    centred = torch.where(known, rewards - mean, 0)
    # The rounding of a mean of equal rewards is no signal; divided by a deviation of next to nothing, it would be one.
    same = (rewards.nan_to_num(-torch.inf).amax(1) == rewards.nan_to_num(torch.inf).amin(1))[:, None]
    centred = torch.where(same, 0, centred)
    if scale:
        deviation = (centred.square().sum(1, keepdim=True) / (number - 1).clamp(min=1)).sqrt()
        centred = centred / (deviation + 1e-6)
    return centred


def grpo(
    policy: Tensor,
    old: Tensor,
    reference: Tensor,
    advantage: Tensor,
    mask: Tensor,
    answers: Tensor,
    *,
    normalization: str,
    max_tokens: int,
    clip_low: float,
    clip_high: float,
    kl: float,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Sum over answers (`tokens`: over tokens) of the loss, and their number.

    Args:
        policy: `[s, b]`, log-probability of each token under the model that is trained, in nats.
        old: `[s, b]`, under the one that the answers were sampled from.
        reference: `[s, b]`, under the one that it is held to; without meaning where kl is 0.
        advantage: `[s, b]`, of the token's answer.
        mask: `[s, b]`, 0 or 1: which tokens belong to an answer.
        answers: `[s, b]` int64, the number of the token's answer within its sequence; -1: of none. No answer goes on in
            another sequence.
        normalization: one of `NORMALIZATIONS`.
        max_tokens: T, for `constant`.
        clip_low: e_low.
        clip_high: e_high.
        kl: weight of the divergence from the reference.

    Returns:
        The sum, the number of answers (`tokens`: of tokens), and by the names of `METRICS` sums over tokens: `kl`, the
        estimate above; `clipped`, where the clip holds the loss; `entropy`, the estimate -log pi; `drift`,
        |log pi - log pi_old|; `tokens`, 1. All scalars, of which only the first has a gradient.

    Raises:
        ValueError: shapes differ, or the normalization is not known.
    """
    given = (policy, old, reference, advantage, mask, answers)
    if len({each.shape for each in given}) > 1:
        raise ValueError(f"shapes are {[list(each.shape) for each in given]}: they must agree")
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization is {normalization!r}, allowed: {', '.join(NORMALIZATIONS)}")
    counted = mask * (answers >= 0)
    lengths = _lengths(counted, answers)
    there = counted > 0
    # Zeros, and with `where` a gradient of exactly zero, where there is no answer.
    log_ratio = torch.where(there, policy - old, 0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    losses = -torch.minimum(ratio * advantage, clipped * advantage)
    to_reference = torch.where(there, reference - policy, 0) if kl else torch.zeros_like(log_ratio)
    divergence = to_reference.exp() - to_reference - 1
    losses = torch.where(there, losses + kl * divergence, 0)
    if normalization == "answer":
        losses = losses / lengths.gather(0, answers.clamp(min=0)).clamp(min=1)
    elif normalization == "constant":
        losses = losses / max_tokens
    total = losses.sum()
    count = counted.sum() if normalization == "tokens" else (lengths > 0).sum()
    held = there & (ratio * advantage > clipped * advantage)
    measured = (divergence, held, torch.where(there, -policy, 0), log_ratio.abs(), counted)
    metrics = [each.detach().to(losses.dtype).sum() for each in measured]
    return total, count.float(), dict(zip(METRICS, metrics, strict=True))


def _lengths(counted: Tensor, answers: Tensor) -> Tensor:
    """Counted tokens of every answer: `[s, b]` -> `[s, b]`, row n of the answer with number n of each sequence."""
    return torch.zeros_like(counted).scatter_add(0, answers.clamp(min=0), counted)
