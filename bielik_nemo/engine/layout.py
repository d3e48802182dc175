"""What each rank of a layout holds, counted on the Megatron model that it would build there.

    python -m bielik_nemo.engine.layout <request.json     # as `bielik-nemo check` runs it

The model of every pipeline and tensor rank is built on the meta device, where tensors have shapes and no memory, under
a process group that only pretends to have the other ranks. Megatron's own layers are built, also where there is
Transformer Engine: it joins a norm to the matrix behind it, and has the same parameters.

A process of its own, so that its caller need not import NeMo; its memory is what the libraries take of a rank's.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import cpu, memory

PARTS = {"embedding": "embedding", "decoder.layers": "layers", "decoder.final": "norm", "output_layer": "output"}
"""Where a parameter counts, by the beginning of its name."""


class _OnMeta(TorchFunctionMode):
    """Makes whatever is made on the meta device, also what names another."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if "device" in kwargs:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def ranks(architecture: Architecture, tp: int, pp: int) -> list[list[dict[str, int]]]:
    """Parameters of every rank by part, and its number of layers: one list for each pipeline rank, in it one for each
    tensor rank.

    Args:
        architecture: of the whole model.
        tp: tensor parallel size.
        pp: pipeline parallel size.
    """
    return [[_rank(architecture, tp, pp, stage * tp + rank) for rank in range(tp)] for stage in range(pp)]


def _rank(architecture: Architecture, tp: int, pp: int, rank: int) -> dict[str, int]:
    from megatron.core import parallel_state

    from bielik_nemo.engine import model

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=tp * pp)
    try:
        parallel_state.initialize_model_parallel(tp, pp, create_gloo_process_groups=False)
        config = model.gpt_config(architecture, tp=tp, pp=pp, fused=False)
        # Weights without values; and without a random state for every rank, which has to be set up for real ones.
        config.perform_initialization, config.use_cpu_initialization = False, False
        with torch.device("meta"), _OnMeta():
            built = config.configure_model(tokenizer=None)
    finally:
        # Without looking for garbage, as `distributed.reset_parallel_state` does: a second for each of up to 64 ranks.
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
    found: Counter[str] = Counter(dict.fromkeys(PARTS.values(), 0))
    for name, parameter in built.named_parameters():
        found[next(part for start, part in PARTS.items() if name.startswith(start))] += parameter.numel()
    return dict(found) | {"num_layers": len(built.decoder.layers)}


def main() -> None:
    """Read `{"models": {name: shape}, "tp": ..., "pp": ...}`, write `{"models": {name: ranks}, "libraries": bytes}`."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # nothing here is for a GPU, and its context would take seconds
    cpu.enable()
    request: dict[str, Any] = json.load(sys.stdin)
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries greet
    shapes = {name: Architecture(**fields) for name, fields in request["models"].items()}
    found = {name: ranks(shape, request["tp"], request["pp"]) for name, shape in shapes.items()}
    json.dump({"models": found, "libraries": memory.peak()}, answers)


if __name__ == "__main__":
    main()
