"""Which layers and units of a model stay, in Model Optimizer's order, and the file from which another tool can cut.

The order is Model Optimizer's (mcore_minitron, nvidia-modelopt 0.43.0), bit for bit and ties included, from squared
scores a in float32:

    hidden: argsort descending of h / (max(h) + 1e-9),  h = sum over all norms of sqrt(a)
    ffn:    argsort descending of f / (max(f) + 1e-9),  f = sqrt(a), in each layer
    heads:  argsort descending within each query group of the L2 norm over head_dim of sqrt(a), in each layer
    layers: highest scores first, equal ones in model order; those that stay keep the model's order

An axis that is not cut keeps its order. torch's argsort is not stable: equal scores may come in any order, the same in
both because the same function sorts the same values. What was chosen is therefore written down, and nothing that works
with the cut model sorts again.

With indices written as in numpy, new layer j is old layer i = layers[j], and its Hugging Face tensors are

    q_proj[heads[i]][:, hidden]   k_proj, v_proj[:, hidden]   o_proj[hidden][:, heads[i]]   (biases: q_proj[heads[i]])
    gate_proj, up_proj[ffn[i]][:, hidden]   down_proj[hidden][:, ffn[i]]   both norms[hidden]

where a head stands for its head_dim rows or columns; embed_tokens and lm_head are [:, hidden], the last norm [hidden].
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from bielik_nemo import artifacts
from bielik_nemo.architecture import Architecture
from bielik_nemo.errors import CheckpointError, ConfigError
from bielik_nemo.validation.shapes import layer_problems


class Scores(Protocol):
    """What is read of an importance score file; see engine/scores.py for its parts."""

    layers: Tensor
    units: dict[str, Tensor]
    blocks: dict[int, Tensor]


@dataclass(frozen=True)
class Kept:
    """What stays of a model: 0-based indices into the source, in the order in which they stand in the cut model.

    Attributes:
        layers: in the model's order.
        hidden: channels of the hidden stream; in the file none where it was rotated (engine/rotation.py).
        ffn: FFN channels, by source layer that stays.
        heads: query heads, by source layer that stays; query group after query group.
    """

    layers: list[int]
    hidden: list[int]
    ffn: dict[int, list[int]]
    heads: dict[int, list[int]]

    def to_json(self, path: Path) -> None:
        """Write atomically, a line for each axis or layer."""
        lines = [f' "layers": {self.layers}', f' "hidden": {self.hidden}']
        for axis in ("ffn", "heads"):
            rows = (f'  "{layer}": {indices}' for layer, indices in getattr(self, axis).items())
            lines.append(f' "{axis}": {{\n' + ",\n".join(rows) + "\n }")
        artifacts.write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def from_json(cls, path: Path) -> Kept:
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: missing, or no such file.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            by_layer = [{int(layer): list(found[axis][layer]) for layer in found[axis]} for axis in ("ffn", "heads")]
            kept = cls(list(found["layers"]), list(found["hidden"]), *by_layer)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"{path}: missing, or no list of kept units ({error})") from None
        return kept


def kept_layers(
    scores: Scores,
    count: int,
    method: str = "block_influence",
    keep_first: int = 0,
    keep_last: int = 0,
    drop_layers: Sequence[int] | None = None,
) -> list[int]:
    """0-based indices of the `count` layers that stay, in model order.

    Args:
        scores: `layers` `[num_layers]`, and for contiguous_block `blocks`.
        count: how many stay.
        method: contiguous_block drops the block of the needed length with the lowest loss increase, of equal ones the
            last; every other method drops the layers with the lowest scores, of equal ones the last.
        keep_first: so many layers from the first on stay in any case.
        keep_last: so many layers up to the last stay in any case.
        drop_layers: by hand; scores are not looked at.

    Raises:
        ConfigError: what stays in any case and what is dropped cannot both be, or blocks of the needed length were not
            measured.
    """
    total = len(scores.layers)
    problems = layer_problems(total, count, keep_first, keep_last, drop_layers)
    if problems:
        raise ConfigError("; ".join(problems))
    if drop_layers is not None:
        dropped = set(drop_layers)
    elif method == "contiguous_block" and count < total:
        dropped = _cheapest_block(scores.blocks, total - count, range(keep_first, count - keep_last + 1))
    else:
        loose = sorted(range(keep_first, total - keep_last), key=lambda i: scores.layers[i].item(), reverse=True)
        dropped = set(loose[count - keep_first - keep_last :])
    return [i for i in range(total) if i not in dropped]


def _cheapest_block(blocks: dict[int, Tensor], length: int, starts: range) -> set[int]:
    if length not in blocks:
        measured = sorted(blocks) or "none"
        raise ConfigError(f"prune.importance.block_sizes: found {measured}, allowed: with {length}, the layers to drop")
    start = min(reversed(starts), key=lambda i: blocks[length][i].item())
    return set(range(start, start + length))


def choose(scores: Scores, source: Architecture, target: Architecture, layers: Sequence[int]) -> Kept:
    """The units that Model Optimizer keeps by these scores.

    Args:
        scores: of a model of the shape `source`.
        source: architecture that is cut.
        target: architecture wanted; query groups and head_dim as in `source`.
        layers: 0-based indices of the layers that stay, see `kept_layers`.

    Raises:
        CheckpointError: the scores are another model's.
    """
    _check_owner(scores, source)
    hidden = list(range(source.hidden_size))
    if target.hidden_size < source.hidden_size:
        norms = torch.stack([scores.units[f"norms.{i}"].pow(0.5) for i in range(2 * source.num_layers)])
        hidden = _best(norms.sum(dim=0), target.hidden_size)
    ffn = {i: list(range(source.ffn_hidden_size)) for i in layers}
    if target.ffn_hidden_size < source.ffn_hidden_size:
        ffn = {i: _best(scores.units[f"decoder.layers.{i}.mlp"].pow(0.5), target.ffn_hidden_size) for i in layers}
    heads = {i: list(range(source.num_attention_heads)) for i in layers}
    if target.num_attention_heads < source.num_attention_heads:
        heads = {i: _best_heads(scores.units[f"decoder.layers.{i}.self_attention"], source, target) for i in layers}
    return Kept(list(layers), hidden, ffn, heads)


def _best(importance: Tensor, count: int) -> list[int]:
    # The division can make two scores equal that were not, so it must be repeated too.
    return (importance / (importance.max() + 1e-9)).argsort(descending=True)[:count].tolist()


def _best_heads(squared: Tensor, source: Architecture, target: Architecture) -> list[int]:
    heads, groups = source.num_attention_heads, source.num_query_groups
    importance = torch.linalg.vector_norm(squared.pow(0.5).view(heads, source.head_dim), ord=2, dim=1)
    order = importance.view(groups, heads // groups).argsort(dim=1, descending=True)
    order = order[:, : target.num_attention_heads // groups] + torch.arange(0, heads, heads // groups)[:, None]
    return order.flatten().tolist()


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
