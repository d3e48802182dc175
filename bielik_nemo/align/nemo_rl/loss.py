"""NeMo-RL's loss with what it lacks: a constant divisor, and groups without signal that take no part.

NeMo-RL's token-level loss is the sum of l_it over the tokens of a micro-batch divided by the number of tokens of the
whole update. Given N T instead, N answers of at most T tokens, the same sum is Dr. GRPO's mean (arXiv 2503.20783). What
it measures per token is turned back.

An answer of a group without signal has an advantage of 0 everywhere: masked, it adds nothing, not even a divergence,
while N stays the number of all answers of the update, as in engine/policy.py. So does an answer that has exactly the
mean of its group, in which only its divergence is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

PER_TOKEN = ("probs_ratio", "probs_ratio_clamped", "kl_penalty", "token_mult_prob_error", "gen_kl_error")
PER_TOKEN += ("policy_kl_error", "js_divergence_error", "sampling_importance_ratio", "approx_entropy")
"""What NeMo-RL's loss measures as a mean over tokens."""


class Loss:
    """What NeMo-RL takes for a loss function (nemo_rl/algorithms/loss/interfaces.py), around its own.

    Args:
        theirs: `ClippedPGLossFn`; with `max_tokens` its `token_level_loss` is set.
        max_tokens: T, for the mean by a constant; None: the mean is NeMo-RL's.
        filter_groups: mask answers that have an advantage of 0.
    """

    def __init__(
        self, theirs: Callable[..., tuple[Tensor, dict[str, Any]]], max_tokens: int | None, filter_groups: bool
    ):
        self.theirs, self.max_tokens, self.filter_groups = theirs, max_tokens, filter_groups
        # NeMo-RL asks the function itself.
        self.loss_type, self.input_type = theirs.loss_type, theirs.input_type
        self.reference_policy_kl_penalty = theirs.reference_policy_kl_penalty

    def __call__(
        self,
        next_token_logprobs: Tensor,
        data: Mapping[str, Any],
        global_valid_seqs: Tensor,
        global_valid_toks: Tensor,
    ) -> tuple[Tensor, dict[str, Any]]:
        """This micro-batch's part of the update's loss, a scalar, and of what is measured beside it.

        Args:
            next_token_logprobs: `[b, s - 1]`, in nats.
            data: `advantages`, `token_mask`, `prev_logprobs`, `generation_logprobs`, `reference_policy_logprobs` `[b,
                s]` and `sample_mask` `[b]`.
            global_valid_seqs: N, answers of the update, on all ranks.
            global_valid_toks: their tokens.
        """
        divisor = global_valid_toks if self.max_tokens is None else global_valid_seqs * self.max_tokens
        counted = data["token_mask"][:, 1:] * data["sample_mask"][:, None]
        apart = (data["prev_logprobs"] - data["generation_logprobs"])[:, 1:].abs()
        if self.filter_groups:
            signal = (data["advantages"] * data["token_mask"] != 0).any(1)
            data = {**data, "sample_mask": data["sample_mask"] * signal}
        loss, measured = self.theirs(
            next_token_logprobs=next_token_logprobs,
            data=data,
            global_valid_seqs=global_valid_seqs,
            global_valid_toks=divisor,
        )
        back = (divisor / global_valid_toks.clamp(min=1)).item()
        measured |= {name: measured[name] * back for name in PER_TOKEN if name in measured}
        measured["mismatch"] = ((apart * counted).sum() / global_valid_toks.clamp(min=1)).item()
        return loss, measured
