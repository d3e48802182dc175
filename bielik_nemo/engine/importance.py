"""Importance under the definitions that a configuration names.

A unit's activation x[s, b] (token s of sample b, of the calibration set) is aggregated over the tokens of each sample,
then over the samples (arXiv 2407.14679, section 2.2), in fp32:

    tokens:   mean  a[b] = mean_s |x[s, b]|     l2  a[b] = sqrt(sum_s x[s, b]^2)    var  a[b] = var_s x[s, b]
    samples:  mean  mean_b a[b]                 l2  sqrt(sum_b a[b]^2)              var  var_b a[b]

var is the population variance (denominator: the count); a is never negative, so mean_b needs no absolute value. (l2,
mean) is Model Optimizer's own and is left to it (minitron.py); the others are measured where it measures: outputs of
both norms of a layer, input of the attention's output projection, input of the FFN's down projection.

A layer's score is its Block Influence, Model Optimizer's too, or the loss without it (leave_out.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bielik_nemo import ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config_prune import Importance
from bielik_nemo.engine import distributed, forward, leave_out, minitron
from bielik_nemo.engine.scores import Scores

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

_MODEL_OPTIMIZER = ("l2", "mean")  # over samples, over tokens


def over_tokens(x: Tensor, how: str) -> Tensor:
    """Aggregate activations `[s, b, units]` over tokens: `[b, units]`, fp32."""
    x = x.float()
    if how == "mean":
        return x.abs().mean(dim=0)
    if how == "l2":
        return torch.linalg.vector_norm(x, dim=0)
    return x.var(dim=0, correction=0)


class OverSamples:
    """Aggregation of `[units]` over samples that come in batches.

    Keeps count, mean and sum of squared deviations, merged batch by batch (Chan, Golub, LeVeque 1979): in fp32 the
    difference of two sums of squares would lose a variance that is small beside the mean.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.deviations: Tensor | float = 0.0

    def add(self, a: Tensor) -> None:
        """Take in a batch of samples `[b, units]`."""
        count, mean = self.count + len(a), a.mean(dim=0)
        shift = mean - self.mean
        self.deviations = self.deviations + (a - mean).square().sum(dim=0) + shift**2 * (self.count * len(a) / count)
        self.mean = self.mean + shift * (len(a) / count)
        self.count = count

    def value(self, how: str) -> Tensor:
        """The aggregate of all samples so far, `[units]`."""
        if how == "mean":
            return self.mean
        if how == "l2":
            return (self.deviations + self.count * self.mean**2).sqrt()
        return self.deviations / self.count


@contextlib.contextmanager
def observed(model: GPTModel, tokens: str) -> Iterator[dict[str, OverSamples]]:
    """Aggregate what passes through this rank's layers while the block runs; by the names of `Scores.units`."""
    found: dict[str, OverSamples] = {}
    handles = []

    def take(name: str, x: Tensor) -> None:
        found.setdefault(name, OverSamples()).add(over_tokens(x, tokens))

    def of_output(name: str, module: torch.nn.Module) -> None:
        handles.append(module.register_forward_hook(lambda _, args, out: take(name, out)))

    def of_input(name: str, module: torch.nn.Module) -> None:
        handles.append(module.register_forward_hook(lambda _, args, out: take(name, args[0])))

    for layer in model.decoder.layers:
        i = layer.layer_number - 1  # global; Megatron counts from 1
        of_output(f"norms.{2 * i}", layer.input_layernorm)
        of_output(f"norms.{2 * i + 1}", layer.pre_mlp_layernorm)
        of_input(f"decoder.layers.{i}.self_attention", layer.self_attention.linear_proj)
        of_input(f"decoder.layers.{i}.mlp", layer.mlp.linear_fc2)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def measure(
    model: GPTModel,
    architecture: Architecture,
    tokens: Tensor,
    settings: Importance,
    batch_size: int,
    key: dict[str, str],
) -> Scores:
    """Scores of every unit and layer, with progress shown; the same on every rank. The model is of no use afterwards.

    Args:
        model: this rank's part; tensor parallel size 1.
        architecture: of the whole model.
        tokens: calibration set `[samples, seq_length]`.
        settings: definitions wanted.
        batch_size: samples in a forward pass.
        key: what the scores belong to (scores.py).
    """
    lengths = {"loss_increase": [1], "contiguous_block": settings.block_sizes}.get(settings.layers, [])
    increases = leave_out.loss_increases(
        model, architecture.num_layers, tokens[: settings.layer_samples], lengths, batch_size
    )
    batches = list(tokens.split(batch_size))
    aggregations = (settings.batch_aggregation, settings.seq_aggregation)
    with contextlib.ExitStack() as stack:
        advance = stack.enter_context(ui.progress("scoring", len(batches)))
        own = {} if aggregations == _MODEL_OPTIMIZER else stack.enter_context(observed(model, aggregations[1]))
        scores = minitron.score(
            model, architecture, lambda m: forward.run(m, batches, lambda _: None, on_batch=advance)
        )
    if aggregations != _MODEL_OPTIMIZER:
        # The square of a variance of variances leaves fp32's range.
        values = {name: samples.value(aggregations[0]).double().square().cpu() for name, samples in own.items()}
        scores = replace(scores, units=distributed.merged(values))
    if settings.layers == "loss_increase":
        return replace(scores, layers=increases[1], key=key)
    return replace(scores, blocks=increases, key=key)
