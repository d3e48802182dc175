"""Training what is nearest to the words of a model: its embeddings and its outermost layers, the others frozen.

Adaptation of megatron-core 0.15.3: a parameter of all layers is one tensor in a checkpoint, whose first axis counts
the layers, and so is what the optimizer keeps of it; a tensor of which only some layers are there is refused. The
strategy here names the optimizer's tensors by layer. The model's own stay as they are in every other checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.models.gpt import GPTModel
from nemo import lightning as nl
from nemo.lightning import _strategy_lib

from bielik_nemo.engine import convert


def freeze_within(model: GPTModel, num_layers: int, boundary: int) -> None:
    """Leave only the embedding, the output layer and the outermost layers to be trained.

    Args:
        model: this rank's part, not yet wrapped for training.
        num_layers: of the whole model.
        boundary: layers at either end.
    """
    for name, layer, parameter in convert.parameters(model):
        outermost = 0 <= layer < boundary or layer >= num_layers - boundary
        parameter.requires_grad_(outermost or not name.startswith("decoder."))


class OutermostStrategy(nl.MegatronStrategy):
    """NeMo's strategy for a model of which some layers are frozen."""

    def optimizer_sharded_state_dict(self, is_loading: bool = False, metadata: dict | None = None) -> dict[str, Any]:
        """What the optimizer keeps, each layer's by itself."""

        def sharded_state_dict(metadata: dict | None) -> dict[str, Any]:
            whole = self.megatron_parallel.sharded_state_dict(metadata=metadata)
            return {name: by_layer(value) for name, value in whole.items()}

        return _strategy_lib.optimizer_sharded_state_dict(
            SimpleNamespace(sharded_state_dict=sharded_state_dict),
            self.lightning_module.optimizers(use_pl_optimizer=False),
            is_loading=is_loading,
            metadata=self.sharded_state_dict_metadata if metadata is None else metadata,
        )


def by_layer(value: Any) -> Any:
    """A parameter's place in a checkpoint, without the axis of layers and with the layer in its name."""
    if isinstance(value, ShardedTensorFactory):
        return replace(value, build_fn=lambda *given: [by_layer(part) for part in value.build_fn(*given)])
    if not isinstance(value, ShardedTensor) or not value.prepend_axis_num:
        return value
    return replace(
        value,
        key=f"{value.key}.{value.global_offset[0]}",
        global_shape=value.global_shape[1:],
        global_offset=value.global_offset[1:],
        axis_fragmentations=value.axis_fragmentations[1:],
        prepend_axis_num=0,
    )
