"""A cut that makes up for what it removes: rotation.py, then Model Optimizer's cut (minitron.py), then refit.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bielik_nemo import ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config_prune import Compensation
from bielik_nemo.engine import minitron, refit, rotation
from bielik_nemo.engine import model as models
from bielik_nemo.prune.kept import Kept

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel


def wanted(settings: Compensation) -> bool:
    """Whether any compensation is asked for."""
    return settings.attention or settings.ffn or settings.blocks or settings.rotation


def cut(
    load: Callable[[], GPTModel],
    source: Architecture,
    target: Architecture,
    kept: Kept,
    batches: list[Tensor],
    settings: Compensation,
) -> tuple[GPTModel, dict[str, dict[str, float]]]:
    """Cut a model to what was chosen to stay, with compensation.

    Args:
        load: makes this rank's part of the source model; called twice, once for the reference.
        source: its architecture.
        target: architecture wanted; embeddings not tied where the hidden stream is rotated.
        kept: what stays; a rotated hidden stream keeps its first principal axes instead of `kept.hidden`.
        batches: calibration tokens `[b, s]`.
        settings: what is compensated.

    Returns:
        This rank's part of the cut model, and the mean squared errors of `refit`.
    """
    reference, model = load(), load()
    channels = torch.tensor(kept.hidden, device=next(model.parameters()).device)

    def project(stream: Tensor) -> Tensor:
        return stream[..., channels]

    rotated = settings.rotation and target.hidden_size < source.hidden_size
    if rotated:
        with ui.progress("principal axes", len(batches)) as advance:
            axes, variances = rotation.principal_axes(reference, batches, advance)
        if source.tie_embeddings:
            source = replace(source, tie_embeddings=False)
            model = _untied(model, source)
        rotation.rotate(model, axes)
        kept = replace(kept, hidden=list(range(target.hidden_size)))
        narrow = axes[:, : target.hidden_size].float()

        def project(stream: Tensor) -> Tensor:
            return stream.float() @ narrow

    model = minitron.prune(model, source, target, kept)
    if rotated:
        rotation.set_gains(model, variances)
    parts = refit.Parts(settings.attention, settings.ffn, settings.blocks)
    if not any(vars(parts).values()):
        return model, {}
    return model, refit.refit(reference, model, kept.layers, batches, project, parts, settings.ridge)


def _untied(model: GPTModel, architecture: Architecture) -> GPTModel:
    """The same function with an output matrix of its own."""
    from megatron.core import parallel_state

    stages = parallel_state.get_pipeline_model_parallel_world_size()
    dtype = next(name for name, dtype in models.DTYPES.items() if dtype == next(model.parameters()).dtype)
    untied = models.build(models.gpt_config(architecture, pp=stages, dtype=dtype, fused=False), architecture)
    state = model.state_dict()
    if model.post_process:
        state["output_layer.weight"] = model.shared_embedding_or_output_weight()
    untied.load_state_dict(state)
    return untied
