"""Minitron scoring and pruning through Model Optimizer (`mcore_minitron`, nvidia-modelopt 0.43.0).

Definitions are Model Optimizer's: a unit's score is sqrt(sum_batch(mean_seq |x|)^2) in fp32, of norm outputs for the
hidden size, of the down projection's input for FFN channels, of the output projection's input for heads (ranked within
their query group); a layer's score is its Block Influence 1 - cos(input, output), here the mean over batches, there
their sum (arXiv 2407.14679, 2408.11796).

Adaptations:

- torch's RMSNorm, which Megatron's local layer spec uses, is unknown to Model Optimizer: registered here.
- Its own score file is a pickle that depends on the pipeline layout. Scores are kept in a file of ours (scores.py), and
  what they choose (prune/kept.py) is handed back through one of its format that lives only for the call.
- Default divisors are coarse (layers 2, FFN 512, hidden 256): each is the greatest that allows the target.
"""

from __future__ import annotations

import functools
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import cpu, distributed
from bielik_nemo.engine.scores import Scores
from bielik_nemo.errors import GateError
from bielik_nemo.prune.kept import Kept

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

_AXES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")


@functools.cache
def _register_rms_norm() -> None:
    """Teach Model Optimizer that torch's RMSNorm can be cut along its features."""
    from modelopt.torch.nas.modules.norm import _DynamicLayerNorm
    from modelopt.torch.nas.registry import DMRegistry

    if torch.nn.RMSNorm in DMRegistry:
        return

    @DMRegistry.register({torch.nn.RMSNorm: "nn.RMSNorm"})
    class _DynamicRMSNorm(_DynamicLayerNorm):
        def _setup(self, *, num_features):
            self._register_hparam("num_features", num_features)
            self._register_dynamic_attribute("weight", self._cut_to_active_features)
            self._register_dynamic_attribute("normalized_shape", self._get_normalized_shape)


def _mode(source: Architecture, target: Architecture) -> list:
    from modelopt.torch.prune.plugins.mcore_minitron import get_mcore_minitron_config

    divisors = {f"{axis}_divisor": math.gcd(getattr(source, axis), getattr(target, axis)) for axis in _AXES[:3]}
    divisors["num_layers_divisor"] = 1
    return [("mcore_minitron", get_mcore_minitron_config(**divisors))]


def _prune(
    model: GPTModel, source: Architecture, target: Architecture, scores_path: Path, forward: Callable[[GPTModel], None]
) -> GPTModel:
    cpu.enable()
    import modelopt.torch.prune as mtp

    _register_rms_norm()
    # Axes that stay are left out: Model Optimizer would sort their units for nothing.
    export = {axis: getattr(target, axis) for axis in _AXES if getattr(target, axis) != getattr(source, axis)}
    model, _ = mtp.prune(
        model,
        mode=_mode(source, target),
        constraints={"export_config": export},
        dummy_input=None,
        config={"forward_loop": forward, "scores_path": str(scores_path)},
    )
    return model


def score(model: GPTModel, architecture: Architecture, forward: Callable[[GPTModel], None]) -> Scores:
    """Measure the importance of every unit and layer; the same on every rank. The model must not be used afterwards.

    Args:
        model: this rank's part; tensor parallel size 1.
        architecture: of the whole model.
        forward: runs the calibration set through the model, one call for each batch.
    """
    batches: list[None] = []
    counter = model.register_forward_pre_hook(lambda *_: batches.append(None))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "scores.pth"
        _prune(model, architecture, architecture, path, forward)
        (written,) = Path(directory).iterdir()
        state = torch.load(written, weights_only=True)
    counter.remove()
    units: dict[str, Tensor] = {}
    first_layer = norms = 0
    for activations in state["activations_per_rank"]:
        local = {int(m.group(1)) for m in map(_LAYER.match, activations) if m}
        for name, value in activations.items():
            if name == "":  # the hidden stream: one entry for each norm, in model order
                for tensor in value.values():
                    units[f"norms.{norms}"] = tensor.cpu()
                    norms += 1
            else:
                units[_LAYER.sub(lambda m, f=first_layer: f"decoder.layers.{int(m.group(1)) + f}.", name)] = value.cpu()
        first_layer += len(local)
    layers = [state["layer_scores"][i + 1] / len(batches) for i in range(architecture.num_layers)]
    return Scores(torch.tensor(layers, dtype=torch.float64), units)


def _modelopt_state(kept: Kept, source: Architecture, stages: int) -> dict:
    """A choice as scores in the form that Model Optimizer writes and reads, for this number of pipeline stages.

    Units that stay score by their place in the cut model, all others 0. So the result is what was chosen on every
    layout, whatever rounding does to sums of scores over stages, and whoever chose.
    """

    def score(indices: Sequence[int], total: int, channels: int = 1) -> Tensor:
        places = torch.zeros(total, device=distributed.device())
        places[list(indices)] = torch.arange(len(indices), 0, -1).to(places)
        return places.square().repeat_interleave(channels)  # Model Optimizer takes the root

    per_stage = source.num_layers // stages
    ranks = []
    for stage in range(stages):
        # Sums over all norms of all stages decide on the hidden size.
        local: dict = {"": {0: score(kept.hidden if stage == 0 else [], source.hidden_size)}}
        for i in range(per_stage):
            layer, name = stage * per_stage + i, f"decoder.layers.{i}."
            heads = kept.heads.get(layer, [])
            local[name + "self_attention"] = score(heads, source.num_attention_heads, source.head_dim)
            local[name + "mlp"] = score(kept.ffn.get(layer, []), source.ffn_hidden_size)
        ranks.append(local)
    return {
        "activations_per_rank": ranks,
        "layer_scores": {i + 1: float(i in kept.layers) for i in range(source.num_layers)},
        "sorted_layers": None,
        "top_k_candidates_per_constraint": {},
    }


def prune(model: GPTModel, source: Architecture, target: Architecture, kept: Kept) -> GPTModel:
    """Cut a model to what was chosen to stay, in place.

    Args:
        model: this rank's part, with its weights; tensor parallel size 1.
        source: architecture of `model`.
        target: architecture wanted; query groups and head_dim as in `source`.
        kept: as many units of each axis as `target` has.

    Raises:
        GateError: the result does not have the target's number of parameters.
    """
    from megatron.core import parallel_state

    if target != source:
        state = _modelopt_state(kept, source, parallel_state.get_pipeline_model_parallel_world_size())
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "scores.pth"
            torch.save(state, path.with_stem(f"scores{distributed.rank()}"))
            model = _prune(model, source, target, path, lambda _: None)
    check_counts(model, target)
    return model


def check_counts(model: GPTModel, target: Architecture) -> None:
    """Compare the number of parameters over all pipeline stages with the target's.

    Raises:
        GateError: they differ.
    """
    from megatron.core import parallel_state

    padding = target.padded_vocab_size() - target.vocab_size
    count = 0
    for name, parameter in model.named_parameters():
        if name == "output_layer.weight" and target.tie_embeddings:
            continue  # the last stage's copy of the embedding
        padded = name in ("embedding.word_embeddings.weight", "output_layer.weight")
        count += parameter.numel() - (padding * parameter.shape[1] if padded else 0)
    total = torch.tensor(count, device=next(model.parameters()).device)
    torch.distributed.all_reduce(total, group=parallel_state.get_pipeline_model_parallel_group())
    if total.item() != target.num_parameters():
        raise GateError(f"pruning left {total.item():,} parameters, the target has {target.num_parameters():,}")
