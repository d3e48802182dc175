"""Hidden states in the loss of distillation, on any pipeline stage: student layers that follow teacher layers.

The teacher's layer runs first and leaves its output; the student's layer measures its own against it, and the gradient
of their distance joins the one that comes from the layers above, as that of a router's auxiliary loss does in Megatron
(`MoEAuxLossAutoScaler`). The distance is a sum over counted tokens, times its weight: Megatron divides the gradients of
every stage by the global count of tokens, and so this one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.num_microbatches_calculator import get_num_microbatches
from torch import Tensor

from bielik_nemo.losses import hidden_state


class _Joined(torch.autograd.Function):
    """A layer's output as it is; backward walks a loss as well, with the trainer's scale (1 but in fp16)."""

    @staticmethod
    def forward(ctx, output, loss, config):
        ctx.config = config
        return output.view_as(output)

    @staticmethod
    def backward(ctx, grad_output):
        one = torch.ones((), device=grad_output.device)
        scale = ctx.config.grad_scale_func
        return grad_output, one if scale is None else scale(one), None


class HiddenStates(torch.nn.Module):
    """The pairs of layers on this pipeline stage, and the projections that are trained with the student.

    A projection stands between streams of different width; it starts the same on every rank.

    Args:
        student: this rank's part.
        teacher: this rank's part.
        layers: pairs of a student's and a teacher's layer, numbered from 0 through the whole model.
        weight: of their distances in the loss.
    """

    def __init__(self, student: GPTModel, teacher: GPTModel, layers: Sequence[Sequence[int]], weight: float):
        super().__init__()
        self.config, self.weight = student.config, weight
        self.mask = torch.empty(0)  # [s, b], of the micro-batch that comes next; see `expect`
        self.sums: deque[Tensor] | None = None  # of the newest step: one for each pair and micro-batch
        self.projections = torch.nn.ParameterDict()
        self.pairs = 0
        self._outputs: dict[int, Tensor] = {}
        widths = teacher.config.hidden_size, student.config.hidden_size
        here, there = ({each.layer_number - 1: each for each in model.decoder.layers} for model in (student, teacher))
        for number, (mine, its) in enumerate(layers):
            if mine not in here:
                continue
            if widths[0] != widths[1]:
                random = torch.Generator().manual_seed(number)
                start = torch.randn(widths, generator=random) / widths[1] ** 0.5
                self.projections[str(number)] = torch.nn.Parameter(start.to(torch.cuda.current_device()))
            self.pairs += 1
            there[its].register_forward_hook(lambda _, __, output, number=number: self._keep(number, output))
            here[mine].register_forward_hook(lambda _, __, output, number=number: self._compare(number, output))

    def expect(self, mask: Tensor) -> None:
        """The mask `[b, s]` of the micro-batch that runs next."""
        self.mask = mask.transpose(0, 1)
        if self.sums is None:
            self.sums = deque(maxlen=self.pairs * get_num_microbatches())

    def _keep(self, number: int, output: Any) -> None:
        self._outputs[number] = output[0]

    def _compare(self, number: int, output: Any) -> Any:
        if number not in self._outputs:  # the student is measured, and the teacher does not run
            return output
        projection = self.projections[str(number)] if str(number) in self.projections else None
        total, _ = hidden_state(output[0], self._outputs.pop(number), self.mask, projection)
        self.sums.append(total.detach())
        return _Joined.apply(output[0], self.weight * total, self.config), *output[1:]

    def total(self) -> Tensor:
        """Sum of all distances in the last step, over all pairs and counted tokens; a collective of all ranks."""
        sums = torch.zeros((), device=torch.cuda.current_device()) + sum(self.sums or ())
        torch.distributed.all_reduce(sums, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        torch.distributed.all_reduce(sums, group=parallel_state.get_pipeline_model_parallel_group())
        return sums
