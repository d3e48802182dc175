"""Importance scores of one model, and the file that holds them.

One safetensors file under global layer names, so it does not depend on the pipeline layout it was measured under, and
serves every target. Its metadata say what the scores belong to; a file of another model, text or definition is refused.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bielik_nemo.config_prune import Importance
from bielik_nemo.errors import CheckpointError

_BLOCKS = "blocks."


@dataclass(frozen=True)
class Scores:
    """Importance of every unit and layer; higher is more important.

    Attributes:
        layers: `[num_layers]`, Block Influence (mean over calibration batches), or the loss increase in nats per token
            when the layer is left out.
        units: squared scores (Model Optimizer takes the root): `norms.<i>` `[hidden_size]`, in model order, and
            `decoder.layers.<i>.{self_attention,mlp}`, one for each channel, by global layer.
        blocks: by length n, `[num_layers - n + 1]`: loss increase in nats per token when layers i .. i + n - 1 are left
            out; empty unless contiguous blocks were measured.
        key: what they belong to, see `key`.
    """

    layers: Tensor
    units: dict[str, Tensor]
    blocks: dict[int, Tensor] = field(default_factory=dict)
    key: dict[str, str] = field(default_factory=dict)

    def check(self, key: dict[str, str]) -> None:
        """Compare what the scores belong to with what they are wanted for.

        Raises:
            CheckpointError: they belong to another model, other calibration tokens, or were measured otherwise.
        """
        stale = [
            f"{part}: found {self.key.get(part, 'none')}, expected {expected}"
            for part, expected in key.items()
            if self.key.get(part) != expected
        ]
        if stale:
            raise CheckpointError(f"scores are stale: {'; '.join(stale)}")

    def save(self, path: Path) -> None:
        """Write as safetensors; `key` is one entry of its metadata, whose entries have no order of their own."""
        blocks = {f"{_BLOCKS}{length}": tensor for length, tensor in self.blocks.items()}
        tensors = {"layers": self.layers} | self.units | blocks
        metadata = {"key": json.dumps(self.key)}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Read what `save` wrote.

        Raises:
            CheckpointError: missing or damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                metadata = file.metadata() or {}
            key = json.loads(metadata.get("key", "{}"))
            layers = tensors.pop("layers")
            names = [name for name in tensors if name.startswith(_BLOCKS)]
            blocks = {int(name.removeprefix(_BLOCKS)): tensors.pop(name) for name in names}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(f"{path}: missing, damaged or not a score file ({error})") from None
        return cls(layers, tensors, blocks, key)


def key(model: str, tokens: Tensor, importance: Importance) -> dict[str, str]:
    """What scores belong to.

    Args:
        model: digest of the source model, independent of its layout.
        tokens: of the calibration set, `[samples, seq_length]`.
        importance: how they are measured; in words, so that a person sees what differs.
    """
    shape, ids = "x".join(map(str, tokens.shape)), tokens.to(torch.int64).contiguous().numpy().tobytes()
    how = (
        f"batch_aggregation={importance.batch_aggregation} seq_aggregation={importance.seq_aggregation} "
        f"layers={importance.layers} layer_samples={importance.layer_samples} "
        f"block_sizes={sorted(set(importance.block_sizes))}"
    )
    return {"model": model, "calibration": f"{shape}:{hashlib.sha256(ids).hexdigest()}", "settings": how}
