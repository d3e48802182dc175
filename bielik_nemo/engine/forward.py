"""Forward passes without training, under any tensor and pipeline layout, through Megatron's own schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel


@torch.no_grad()
def passes(
    model: GPTModel,
    batches: Iterable[Mapping[str, Any]],
    consume: Callable[[Tensor, Mapping[str, Any]], Any],
    on_batch: Callable[[], None] = lambda: None,
) -> list[Any]:
    """Run batches through the model, in evaluation mode.

    Args:
        model: this rank's part.
        batches: `tokens` and `position_ids` `[b, s]`, with `labels` `[b, s]` where the model is to return losses, and
            what says where attention may go (see attention.py); nothing: to all tokens before.
        consume: called on the last pipeline stage with logits `[b, s, v/tp]`, or with losses `[b, s]` (nats per token),
            of this context-parallel rank's tokens, and the batch.
        on_batch: called once a batch is through, on every rank (progress).

    Returns:
        What `consume` returned, on the last pipeline stage; an empty list elsewhere.
    """
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.utils import get_batch_on_this_cp_rank

    from bielik_nemo.engine import attention

    training = model.training
    model.eval()
    device = next(model.parameters()).device
    schedule = get_forward_backward_func()
    results: list[Any] = []
    for batch in batches:
        masked = {"attention_mask": None} | attention.of(batch)
        named = {name: batch[name].to(device) for name in ("tokens", "position_ids", "labels") if name in batch}

        def forward_step(_: Iterator, stage: GPTModel, batch=batch, named=named, masked=masked):
            # Under context parallelism, this rank's pieces of every sequence.
            own = {name: each.contiguous() for name, each in get_batch_on_this_cp_rank(dict(named)).items()}
            output = stage(own["tokens"], own["position_ids"], labels=own.get("labels"), **masked)
            return output, lambda out, non_loss_data=True: consume(out, batch)

        results += schedule(
            forward_step_func=forward_step,
            data_iterator=iter([batch]),
            model=model,
            num_microbatches=1,
            seq_length=named["tokens"].shape[1],
            micro_batch_size=named["tokens"].shape[0],
            forward_only=True,
            collect_non_loss_data=True,
        )
        on_batch()
    model.train(training)
    return results


def run(
    model: GPTModel,
    batches: list[Tensor],
    consume: Callable[[Tensor], Any],
    *,
    labels: bool = False,
    attention: Mapping[str, Any] | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> list[Any]:
    """`passes` of token batches without any more to them.

    Args:
        model: this rank's part.
        batches: token ids `[b, s]`, or `[b, s + 1]` with labels (inputs and their successors).
        consume: as in `passes`, without the batch.
        labels: whether to ask the model for losses.
        attention: of all batches, where it may go; None: to all tokens before.
        on_batch: as in `passes`.
    """

    def whole(tokens: Tensor) -> dict[str, Any]:
        inputs = tokens[:, :-1] if labels else tokens
        successors = {"labels": tokens[:, 1:]} if labels else {}
        positions = torch.arange(inputs.shape[1]).expand_as(inputs)
        return {"tokens": inputs, "position_ids": positions, **successors, **(attention or {})}

    return passes(model, map(whole, batches), lambda out, _: consume(out), on_batch)


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
