"""Forward passes without training, under any tensor and pipeline layout, through Megatron's own schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel


@torch.no_grad()
def run(
    model: GPTModel,
    batches: list[Tensor],
    consume: Callable[[Tensor], Any],
    *,
    labels: bool = False,
    attention: dict[str, Any] | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> list[Any]:
    """Run token batches through the model, in evaluation mode.

    Args:
        model: this rank's part.
        batches: token ids `[b, s]`, or `[b, s + 1]` with labels (inputs and their successors).
        consume: called on the last pipeline stage with logits `[b, s, v/tp]`, or with losses `[b, s]` (nats per token),
            of this context-parallel rank's tokens.
        labels: whether to ask the model for losses.
        attention: where it may go, see text_dataset.py; None: to all tokens before.
        on_batch: called once a batch is through, on every rank (progress).

    Returns:
        What `consume` returned, on the last pipeline stage; an empty list elsewhere.
    """
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.utils import get_batch_on_this_cp_rank

    training = model.training
    model.eval()
    device = next(model.parameters()).device
    schedule = get_forward_backward_func()
    results: list[Any] = []
    masked = {"attention_mask": None} | (attention or {})
    for batch in batches:
        tokens = batch.to(device)
        inputs, targets = (tokens[:, :-1], tokens[:, 1:]) if labels else (tokens, None)

        def forward_step(_: Iterator, stage: GPTModel, inputs=inputs, targets=targets):
            positions = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
            # Under context parallelism, this rank's pieces of every sequence.
            own = get_batch_on_this_cp_rank({"tokens": inputs, "positions": positions, "labels": targets})
            successors = None if targets is None else own["labels"].contiguous()
            output = stage(own["tokens"].contiguous(), own["positions"], labels=successors, **masked)
            return output, lambda out, non_loss_data=True: consume(out)

        results += schedule(
            forward_step_func=forward_step,
            data_iterator=iter([batch]),
            model=model,
            num_microbatches=1,
            seq_length=inputs.shape[1],
            micro_batch_size=inputs.shape[0],
            forward_only=True,
            collect_non_loss_data=True,
        )
        on_batch()
    model.train(training)
    return results


def from_last_stage(value: Tensor) -> Tensor:
    """The last pipeline stage's value, on every stage; shapes must agree."""
    from megatron.core import parallel_state

    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        torch.distributed.broadcast(
            value,
            src=parallel_state.get_pipeline_model_parallel_last_rank(),
            group=parallel_state.get_pipeline_model_parallel_group(),
        )
    return value


def held_out_loss(
    model: GPTModel, blocks: Tensor, batch_size: int, on_batch: Callable[[], None] = lambda: None
) -> float:
    """Mean cross-entropy in nats per token over blocks `[n, s + 1]`; the same on every rank.

    Runs the same blocks on every data-parallel rank, so that the value does not depend on the layout.
    """
    from megatron.core import parallel_state

    batches = list(blocks.split(batch_size))
    sums = run(model, batches, lambda losses: losses.double().sum(), labels=True, on_batch=on_batch)
    device = next(model.parameters()).device
    total = torch.stack(sums).sum().to(device) if sums else torch.zeros((), dtype=torch.float64, device=device)
    if parallel_state.get_context_parallel_world_size() > 1:
        torch.distributed.all_reduce(total, group=parallel_state.get_context_parallel_group())
    return from_last_stage(total).item() / (blocks.shape[0] * (blocks.shape[1] - 1))


def logits(model: GPTModel, tokens: Tensor, vocab_size: int) -> Tensor:
    """Logits `[b, s, vocab_size]` in fp32 on the CPU, gathered over the vocabulary shards; the same on every rank."""
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    found = run(model, [tokens], lambda out: gather_from_tensor_model_parallel_region(out)[..., :vocab_size].float())
    device = next(model.parameters()).device
    value = found[0].contiguous() if found else torch.empty(*tokens.shape, vocab_size, device=device)
    return from_last_stage(value).cpu()
