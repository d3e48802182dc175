"""Turning the hidden stream to its principal axes, so that cutting it to the first k channels loses least.

RMSNorm without gains commutes with any rotation Q of the hidden stream: fold each norm's gains into the linear layers
that read it, then

    E' = E Q,   W_in' = W_in diag(g) Q,   W_out' = Q^T W_out,

and the model computes the same function (SliceGPT, arXiv 2401.15024 section 3.1). Q holds the eigenvectors, largest
first, of the covariance of all attention and FFN norm inputs: one global rotation, as in Ministral 3 (arXiv
2601.08584), since residual connections tie all layers to one basis.

Deviations: the covariance is that of the inputs divided by their root mean square, which is what the weights see, so
that late layers and massive activations do not decide alone. After the cut, norms of k channels are too large by
sqrt(k / d) against the share r of the variance that is kept: their gains become sqrt(r d / k).

The output matrix needs the last norm's gains folded in, the input embedding does not: tied embeddings become two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bielik_nemo.engine import forward

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel


def _norms(model: GPTModel) -> list[torch.nn.Module]:
    """Every norm of this stage that reads the hidden stream."""
    layers = [norm for layer in model.decoder.layers for norm in (layer.input_layernorm, layer.pre_mlp_layernorm)]
    last = model.decoder.final_layernorm
    return layers if last is None else [*layers, last]


@torch.no_grad()
def principal_axes(
    model: GPTModel, batches: list[Tensor], on_batch: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor]:
    """Eigenvectors Q `[d, d]` (columns) and eigenvalues `[d]` of the normalised hidden stream, largest first, float64.

    The same on every pipeline stage; one all-reduce of d^2 values and one broadcast.
    """
    from megatron.core import parallel_state

    width = model.config.hidden_size
    device = next(model.parameters()).device
    covariance = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(_, args: tuple[Tensor, ...]) -> None:
        x = args[0].flatten(0, -2).float()
        x = x * (x.square().mean(dim=-1, keepdim=True) + 1e-12).rsqrt()  # an embedding may be all zeros
        covariance.add_(x.T @ x)

    handles = [norm.register_forward_pre_hook(add) for norm in _norms(model)]
    try:
        forward.run(model, batches, lambda _: None, on_batch=on_batch)
    finally:
        for handle in handles:
            handle.remove()
    torch.distributed.all_reduce(covariance, group=parallel_state.get_pipeline_model_parallel_group())
    values, vectors = torch.linalg.eigh(covariance)
    # Of near-equal eigenvalues every machine may find another basis: all stages take one's.
    return forward.from_last_stage(vectors.flip(1)), forward.from_last_stage(values.flip(0).clamp(min=0))


@torch.no_grad()
def rotate(model: GPTModel, axes: Tensor) -> None:
    """Fold the norms' gains into what reads them and turn every matrix on the hidden stream, in place.

    Args:
        model: this rank's part, embeddings not tied; tensor parallel size 1.
        axes: orthogonal `[d, d]`; new channel i is the old stream along column i.
    """

    def reads(weight: Tensor, gains: Tensor) -> None:
        weight.copy_(((weight.double() * gains.double()) @ axes).to(weight.dtype))

    def writes(weight: Tensor) -> None:
        weight.copy_((axes.T @ weight.double()).to(weight.dtype))

    for layer in model.decoder.layers:
        reads(layer.self_attention.linear_qkv.weight, layer.input_layernorm.weight)
        reads(layer.mlp.linear_fc1.weight, layer.pre_mlp_layernorm.weight)
        writes(layer.self_attention.linear_proj.weight)
        writes(layer.mlp.linear_fc2.weight)
    if model.pre_process:
        embedding = model.embedding.word_embeddings.weight
        embedding.copy_((embedding.double() @ axes).to(embedding.dtype))
    if model.post_process:
        reads(model.output_layer.weight, model.decoder.final_layernorm.weight)
    for norm in _norms(model):
        norm.weight.fill_(1.0)


@torch.no_grad()
def set_gains(model: GPTModel, eigenvalues: Tensor) -> None:
    """Give the norms of a rotated and cut model the gains that its narrower stream needs."""
    kept, width = model.config.hidden_size, len(eigenvalues)
    share = (eigenvalues[:kept].sum() / eigenvalues.sum()).item()
    for norm in _norms(model):
        norm.weight.fill_(math.sqrt(share * width / kept))
