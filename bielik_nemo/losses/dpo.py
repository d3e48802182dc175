"""Direct preference optimisation (arXiv 2305.18290, eq. 7) on summed log-probabilities of answers.

    L = sum_p -log sigma(z_p),   z = beta_c * log(pi(y_w) / ref(y_w)) - beta_r * log(pi(y_l) / ref(y_l))

y_w is the chosen and y_l the rejected answer of pair p, beta_c = beta_r = beta in the paper; two of them as in Bielik's
trainer. Label smoothing e takes a label to be wrong with that probability (conservative DPO):
-(1 - e) log sigma(z) - e log sigma(-z).

Length normalisation is the caller's: log-probabilities of policy and reference alike divided by the answer's tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

METRICS = ("chosen_reward", "rejected_reward", "margin", "accuracy", "chosen_log_prob")
METRICS += ("chosen_log_ratio", "rejected_log_ratio", "penalized")
"""What is measured beside the loss, of each pair; see `dpo`."""


def dpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    beta_rejected: float | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Sum over pairs of the loss, in nats, and the number of pairs.

    Args:
        policy_chosen: `[p]`, log-probability of each chosen answer under the model that is trained, in nats.
        policy_rejected: `[p]`, the same of each rejected answer.
        reference_chosen: `[p]`, under the model it is held to; NaN: there is no pair at this place.
        reference_rejected: `[p]`, the same.
        beta: of the chosen answer's log-ratio.
        beta_rejected: of the rejected answer's; None: beta.
        label_smoothing: e, 0 up to 1/2.

    Returns:
        The sum, the number of pairs, and by the names of `METRICS` further sums over pairs, all scalars, of which only
        the first has a gradient: `chosen_reward` and `rejected_reward`, beta times the log-ratio; `margin`, the one
        less the other; `accuracy`, whether that is positive; `chosen_log_prob` of the policy; `chosen_log_ratio` and
        `rejected_log_ratio`, log(pi / ref); `penalized`, whether a penalty is at work: here never.

    Raises:
        ValueError: shapes differ.
    """
    return pairwise(
        policy_chosen,
        policy_rejected,
        reference_chosen,
        reference_rejected,
        betas=(beta, beta if beta_rejected is None else beta_rejected),
        shortfall=0.0,
        label_smoothing=label_smoothing,
    )


def pairwise(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    betas: tuple[float, float],
    shortfall: float,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """`dpo` with z less `shortfall` times how far the chosen answer's log-probability is below the reference's."""
    given = (policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    if len({each.shape for each in given}) > 1:
        raise ValueError(f"log-probabilities are {[list(each.shape) for each in given]}: they must agree")
    there = ~(reference_chosen.isnan() | reference_rejected.isnan())
    # Zeros, and with `where` a gradient of exactly zero, for what is not there.
    chosen = torch.where(there, policy_chosen - reference_chosen, 0)
    rejected = torch.where(there, policy_rejected - reference_rejected, 0)
    below = torch.relu(-chosen)  # whose slope is 0 where they are equal
    z = betas[0] * chosen - betas[1] * rejected - shortfall * below
    losses = -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)
    rewards = betas[0] * chosen.detach(), betas[1] * rejected.detach()
    margin = rewards[0] - rewards[1]
    measured = (*rewards, margin, margin > 0, torch.where(there, policy_chosen.detach(), 0), chosen, rejected)
    penalized = (below > 0) & (shortfall > 0)
    metrics = [each.detach().to(losses.dtype).sum() for each in (*measured, penalized)]
    total = torch.where(there, losses, 0).sum()
    return total, there.sum().float(), dict(zip(METRICS, metrics, strict=True))
