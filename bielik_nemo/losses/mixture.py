"""Losses added up with literal weights: what distillation trains on.

    L = w_1 L_1 + w_2 L_2 + ...

Each L_i is one of the losses of this package, in nats per token and with its own T^2, so that a weight means what it
says. Nothing rescales the parts by each other's size, as Model Optimizer's balancer does at every step.
Every part with a weight keeps a gradient in the dtype of the logits until backward, so a mixture of two holds two.

What a teacher said comes as its logits, or as what was kept of them: forward KL is then estimated from words sampled
from it (`sampled_kl`), or taken on its likeliest words with the others as one (`sparse_kl`). The other divergences need
the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from bielik_nemo.losses.agreement import most_likely
from bielik_nemo.losses.cross_entropy import cross_entropy
from bielik_nemo.losses.forward_kl import forward_kl
from bielik_nemo.losses.jensen_shannon import jensen_shannon
from bielik_nemo.losses.reverse_kl import reverse_kl
from bielik_nemo.losses.sampled_kl import sampled_kl
from bielik_nemo.losses.sparse_kl import sparse_kl

PARTS = ("forward_kl", "reverse_kl", "jensen_shannon", "cross_entropy")
"""What can be mixed."""


class Sampled(NamedTuple):
    """Words drawn from a teacher at temperature 1; see `sampled_kl`."""

    ids: Tensor  # [s, b, n]
    surprisal: Tensor  # [s, b]


class TopK(NamedTuple):
    """A teacher's likeliest words and their log-probabilities at the temperature of the loss; see `sparse_kl`."""

    ids: Tensor  # [s, b, k]
    log_probs: Tensor  # [s, b, k]


Teacher = Tensor | Sampled | TopK
"""What a teacher said about every token: logits `[s, b, v/tp]`, or what was kept of them."""


def mixture(
    student: Tensor,
    teacher: Teacher,
    labels: Tensor,
    mask: Tensor,
    weights: Mapping[str, float],
    *,
    temperature: float = 1.0,
    beta: float = 0.5,
    vocab_size: int | None = None,
    tp_group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Weighted sum of losses over counted tokens, in nats, the number of counted tokens, and each loss by itself.

    Args:
        student: logits `[s, b, v/tp]`; gradients flow here only.
        teacher: what it said about the same tokens.
        labels: `[s, b]`, the words of the text, for cross-entropy.
        mask: `[s, b]`, weight of each token, usually 0 or 1.
        weights: of `PARTS`; what is missing or 0 is not computed.
        temperature: T > 0, of the divergences from the teacher; cross-entropy has none.
        beta: weight of the teacher in Jensen-Shannon's mixture.
        vocab_size: true vocabulary size; columns past it are padding and never count.
        tp_group: tensor-parallel group that shares the vocabulary.

    Returns:
        The weighted sum (the same on every tensor-parallel rank; fp64 for an fp64 student), `mask.sum()`, and the sum
        of every part with a weight, without that weight and without a gradient.

    Raises:
        ValueError: no weight is positive, one is negative or no part's, a part needs logits of the teacher and has
            none, a sampled teacher meets another temperature than 1, or what the losses themselves refuse.
    """
    wanted = {name: weight for name, weight in weights.items() if weight}
    if not wanted or wanted.keys() - set(PARTS) or min(wanted.values()) < 0:
        raise ValueError(f"weights are {dict(weights)}: allowed are positive ones of {', '.join(PARTS)}, one at least")
    shared = {"vocab_size": vocab_size, "tp_group": tp_group}
    softened = shared | {"temperature": temperature}
    parts = {"cross_entropy": partial(cross_entropy, student, labels, mask, **shared)}
    if isinstance(teacher, Sampled):
        if temperature != 1:
            raise ValueError(f"temperature={temperature}: words sampled from a teacher are of temperature 1")
        parts["forward_kl"] = partial(sampled_kl, student, *teacher, mask, **shared)
    elif isinstance(teacher, TopK):
        parts["forward_kl"] = partial(sparse_kl, student, *teacher, mask, **softened)
    else:
        parts["forward_kl"] = partial(forward_kl, student, teacher, mask, **softened)
        parts["reverse_kl"] = partial(reverse_kl, student, teacher, mask, **softened)
        parts["jensen_shannon"] = partial(jensen_shannon, student, teacher, mask, beta=beta, **softened)
    if missing := wanted.keys() - parts.keys():
        raise ValueError(f"{', '.join(sorted(missing))}: needs the teacher's logits, has its {type(teacher).__name__}")
    sums = {name: parts[name]()[0] for name in wanted}
    total = torch.stack([weight * sums[name] for name, weight in wanted.items()]).sum()
    return total, mask.sum(dtype=torch.float32), {name: value.detach() for name, value in sums.items()}


@torch.no_grad()
def favourite(teacher: Teacher, *, vocab_size: int | None = None, tp_group: ProcessGroup | None = None) -> Tensor:
    """The teacher's likeliest word for every token, int64 `[s, b]`: of samples the one that was drawn most often.

    Of several the one with the smallest id; samples of a flat distribution may name another than its logits would.
    """
    if isinstance(teacher, Sampled):
        return teacher.ids.long().mode(dim=-1).values
    if isinstance(teacher, TopK):
        return teacher.ids.gather(-1, teacher.log_probs.argmax(-1, keepdim=True)).squeeze(-1).long()
    return most_likely(teacher, vocab_size=vocab_size, tp_group=tp_group)
