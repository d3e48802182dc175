"""DPO-Positive: DPO that does not let the chosen answer's probability fall below the reference's.

Where both answers are nearly the same, DPO widens the gap between them by making both unlikely, the rejected one more
so. A penalty on how far the chosen one is below the reference, p = max(0, log ref(y_w) - log pi(y_w)), prevents it.
There are two forms of it, which differ by orders of magnitude for the same lambda:

    smaug    -log sigma( beta * (D - lambda * p) )      arXiv 2402.13228, lambda 50
    bielik   -log sigma( beta * D - lambda * p )        arXiv 2505.02410, eq. 4; lambda 2.5, beta 0.05

with D = log(pi / ref)(y_w) - log(pi / ref)(y_l), so that bielik(beta, lambda) is smaug(beta, lambda / beta). With a
beta of its own for the rejected answer (Bielik's trainer), beta * D is beta_c * (...) - beta_r * (...), and beta in
smaug's penalty is beta_c.

While the chosen answer is below the reference, dL / d log pi(y_w) = -(beta + lambda) * sigma(-z) is negative, and the
larger the further it is below: the loss always raises it. Under label smoothing e that holds while sigma(z) < 1 - e.
"""

from __future__ import annotations

from torch import Tensor

from bielik_nemo.losses.dpo import pairwise

FORMS = ("bielik", "smaug")


def dpo_positive(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    penalty: float,
    form: str = "bielik",
    beta_rejected: float | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Sum over pairs of the loss, in nats, the number of pairs, and what is measured beside it.

    Args:
        policy_chosen: `[p]`; see `dpo` for these four, and for what is not here.
        policy_rejected: `[p]`.
        reference_chosen: `[p]`.
        reference_rejected: `[p]`.
        beta: of the chosen answer's log-ratio.
        penalty: lambda.
        form: where it stands, one of `FORMS`.
        beta_rejected: of the rejected answer's log-ratio; None: beta.
        label_smoothing: e, 0 up to 1/2.

    Returns:
        What `dpo` returns; `penalized` counts the pairs whose chosen answer is below the reference.

    Raises:
        ValueError: shapes differ, or there is no such form.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r}: allowed are {', '.join(FORMS)}")
    return pairwise(
        policy_chosen,
        policy_rejected,
        reference_chosen,
        reference_rejected,
        betas=(beta, beta if beta_rejected is None else beta_rejected),
        shortfall=penalty if form == "bielik" else beta * penalty,
        label_smoothing=label_smoothing,
    )
