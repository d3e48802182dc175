"""Minitron scoring and pruning through Model Optimizer (`mcore_minitron`, nvidia-modelopt 0.43.0).

Definitions are Model Optimizer's: a unit's score is sqrt(sum_batch(mean_seq |x|)^2) in fp32, of norm outputs for the
hidden size, of the down projection's input for FFN channels, of the output projection's input for heads (ranked within
their query group); a layer's score is its Block Influence 1 - cos(input, output) (arXiv 2407.14679, 2408.11796).

Adaptations:

- torch's RMSNorm, which Megatron's local layer spec uses, is unknown to Model Optimizer: registered here.
- Its own score file is a pickle that depends on the pipeline layout. Scores are kept in safetensors under global layer
  names, and handed back through a file of its format that lives only for the call.
- Default divisors are coarse (layers 2, FFN 512, hidden 256): each is the greatest that allows the target.
"""

from __future__ import annotations

import functools
import math
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import cpu, distributed
from bielik_nemo.errors import CheckpointError, GateError

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

_AXES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Scores:
    """Importance scores of one model, independent of the layout they were measured under.

    Attributes:
        layers: Block Influence `[num_layers]`, summed over calibration batches; higher is more important.
        units: squared activation scores, `norms.<i>` `[hidden_size]` and
            `decoder.layers.<i>.{self_attention,mlp}` by global layer.
    """

    layers: Tensor
    units: dict[str, Tensor]

    def kept_layers(self, count: int) -> list[int]:
        """0-based indices of the `count` most important layers, in model order; ties as in Model Optimizer."""
        order = sorted(range(len(self.layers)), key=lambda i: self.layers[i].item(), reverse=True)
        return sorted(order[:count])

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        save_file({"layers": self.layers} | {name: t.contiguous() for name, t in self.units.items()}, path)

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Read what `save` wrote.

        Raises:
            CheckpointError: missing or damaged.
        """
        try:
            tensors = load_file(path)
            return cls(tensors.pop("layers"), tensors)
        except (OSError, SafetensorError, KeyError) as error:
            raise CheckpointError(f"{path}: missing, damaged or not a score file ({error})") from None


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
        forward: runs the calibration set through the model.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "scores.pth"
        _prune(model, architecture, architecture, path, forward)
        (written,) = Path(directory).iterdir()
        state = torch.load(written, weights_only=True)
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
    layers = [state["layer_scores"][i + 1] for i in range(architecture.num_layers)]
    return Scores(torch.tensor(layers, dtype=torch.float64), units)


def _modelopt_state(scores: Scores, stages: int) -> dict:
    """Scores in the form that Model Optimizer writes and reads, for this number of pipeline stages."""
    layers = len(scores.layers)
    per_stage = layers // stages
    ranks = []
    for stage in range(stages):
        first = stage * per_stage
        local: dict = {"": {i: scores.units[f"norms.{i}"] for i in range(2 * first, 2 * (first + per_stage))}}
        for i in range(per_stage):
            for part in ("self_attention", "mlp"):
                local[f"decoder.layers.{i}.{part}"] = scores.units[f"decoder.layers.{first + i}.{part}"]
        ranks.append(local)
    return {
        "activations_per_rank": ranks,
        "layer_scores": {i + 1: scores.layers[i].item() for i in range(layers)},
        "sorted_layers": None,
        "top_k_candidates_per_constraint": {},
    }


def _check_owner(scores: Scores, source: Architecture) -> None:
    """Compare the shapes of scores with an architecture's."""
    expected = {"layers": source.num_layers}
    expected |= {f"norms.{i}": source.hidden_size for i in range(2 * source.num_layers)}
    for i in range(source.num_layers):
        expected[f"decoder.layers.{i}.self_attention"] = source.num_attention_heads * source.head_dim
        expected[f"decoder.layers.{i}.mlp"] = source.ffn_hidden_size
    found = {name: tensor.numel() for name, tensor in {"layers": scores.layers, **scores.units}.items()}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"scores are another model's: found {found.get(name, 0)} of {name}, "
                f"this model has {expected.get(name, 0)}"
            )


def prune(model: GPTModel, source: Architecture, target: Architecture, scores: Scores) -> GPTModel:
    """Cut a model to a target by given scores, in place.

    Args:
        model: this rank's part, with its weights; tensor parallel size 1.
        source: architecture of `model`.
        target: architecture wanted; query groups and head_dim as in `source`.
        scores: of this very model.

    Raises:
        CheckpointError: the scores are another model's.
        GateError: the result does not have the target's number of parameters.
    """
    from megatron.core import parallel_state

    stages = parallel_state.get_pipeline_model_parallel_world_size()
    _check_owner(scores, source)
    if target != source:
        with tempfile.TemporaryDirectory() as directory:
            rank = distributed.rank()
            path = Path(directory) / "scores.pth"
            torch.save(_modelopt_state(scores, stages), Path(directory) / f"scores{rank}.pth")
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
