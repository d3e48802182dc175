"""The loss of distillation as NeMo and Model Optimizer want it: what is trained on, what is logged, one denominator.

`Criterion` turns logits into sums over tokens, on the last pipeline stage; `SumsReduction` adds these up over
micro-batches and data-parallel ranks and divides once, as Megatron does with the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from megatron.core import parallel_state
from nemo.lightning.megatron_parallel import MaskedTokenLossReduction
from torch import Tensor

from bielik_nemo.engine import forward
from bielik_nemo.engine import model as models
from bielik_nemo.losses import Teacher, agreement, favourite, mixture


class Criterion(torch.nn.modules.loss._Loss):
    """`losses.mixture` and `losses.agreement` of this rank's logits.

    Args:
        weights: of the parts of the loss; see `losses.mixture`.
        temperature: of the divergences from the teacher.
        beta: of Jensen-Shannon.
        vocab_size: true vocabulary size.
        normalization: what tokens that differ in weight count as: `tokens`, one each; `weights`, these.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        temperature: float,
        beta: float,
        vocab_size: int,
        normalization: str = "tokens",
    ):
        super().__init__()
        self.normalization = normalization
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.temperature, self.beta = temperature, beta
        self.vocab_size = vocab_size

    @property
    def names(self) -> list[str]:
        """Of the sums that `measure` returns, without the count; forward KL is `kl` for short."""
        return ["loss", "agreement", *("kl" if name == "forward_kl" else name for name in self.weights)]

    def measure(self, logits: Tensor, teacher: Teacher, labels: Tensor, mask: Tensor) -> Tensor:
        """Sums over counted tokens, in the order of `names`, and the count: fp32 `[len(names) + 1]`.

        Only the first, the loss, has a gradient.

        Args:
            logits: `[s, b, v/tp]`.
            teacher: what it said about these tokens, sequence first.
            labels: Megatron's, `[b, s]`.
            mask: Megatron's, `[b, s]`.
        """
        labels, mask = labels.transpose(0, 1), mask.transpose(0, 1)
        shared = {"vocab_size": self.vocab_size, "tp_group": models.tp_group()}
        total, count, parts = mixture(
            logits, teacher, labels, mask, self.weights, temperature=self.temperature, beta=self.beta, **shared
        )
        if self.normalization == "tokens":
            count = (mask > 0).sum()
        agreed, _ = agreement(logits, favourite(teacher, **shared), mask, **shared)
        return torch.stack([total, agreed, *(parts[name] for name in self.weights), count])

    def forward(self, student: Any, teacher: Any, labels: Tensor, mask: Tensor) -> Tensor:
        """`measure` of what Model Optimizer captured: `(logits, bias)` of student and teacher."""
        return self.measure(student[0], teacher[0], labels, mask)


HUNDREDTHS = 100
"""The unit in which weights are counted."""


class SumsReduction(MaskedTokenLossReduction):
    """Hands Megatron a sum and a token count, so that it divides once by the global count; so are the logged means.

    Args:
        measure: `measure(batch, forward_out)` returns a micro-batch's sums, the loss first, and their count last.
        names: of the sums.
        parts: of a token in which counts come, since Megatron adds up whole numbers.
    """

    def __init__(self, measure: Callable[[dict[str, Tensor], Tensor], Tensor], names: list[str], parts: int = 1):
        super().__init__()
        self.measure, self.names, self.parts = measure, names, parts
        self.sums: Tensor | None = None  # of the newest step, over all ranks; the last is their count

    def forward(self, batch: dict[str, Tensor], forward_out: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss sum in nats, number of counted tokens, and all sums for the log."""
        sums = self.measure(batch, forward_out)
        # The product is a tensor of its own: Megatron's pipeline schedule frees it, and will not free a view.
        count = (sums[-1].detach() * self.parts).round().to(torch.int)
        return sums[0] * self.parts, count, {"sums": sums.detach()}

    def reduce(self, losses_reduced_per_micro_batch: list[dict[str, Tensor]]) -> Tensor:
        """Mean loss per counted token over micro-batches and data-parallel ranks, in nats."""
        sums = torch.stack([each["sums"] for each in losses_reduced_per_micro_batch]).sum(dim=0)
        torch.distributed.all_reduce(sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        self.sums = sums
        return sums[0] / sums[-1]

    def means(self, **others: Tensor) -> dict[str, float]:
        """Means of the last step by name; a collective of the pipeline, whose last stage knows them.

        Args:
            others: sums over the same tokens that are to be divided as well.
        """
        found = self.totals()
        count = found.pop("count")
        return {name: each / count for name, each in {**found, **{k: v.item() for k, v in others.items()}}.items()}

    def totals(self) -> dict[str, float]:
        """Sums of the last step by name, and their `count`; a collective of the pipeline."""
        if self.sums is None:
            self.sums = torch.zeros(len(self.names) + 1, device=torch.cuda.current_device())
        return dict(zip([*self.names, "count"], forward.from_last_stage(self.sums).tolist(), strict=True))
