"""What Megatron would build on every rank, asked of a process of its own, and compared with our arithmetic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from bielik_nemo.architecture import Architecture
from bielik_nemo.budget.ranks import ranks
from bielik_nemo.errors import UserError


@dataclass(frozen=True)
class Layout:
    """What was built.

    Attributes:
        models: of each model, for each pipeline rank and in it for each tensor rank: its parameters by part, and its
            number of layers.
        libraries: bytes that the process took at most, none of them for a model.
    """

    models: dict[str, list[list[dict[str, int]]]]
    libraries: int


def build(models: Mapping[str, Architecture], tp: int, pp: int) -> Layout:
    """Build models on the meta device for every rank of a layout; see engine/layout.py.

    Raises:
        UserError: Megatron does not build one of them.
    """
    request = {"models": {name: asdict(model) for name, model in models.items()}, "tp": tp, "pp": pp}
    done = subprocess.run(
        [sys.executable, "-m", "bielik_nemo.engine.layout"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={"OMP_NUM_THREADS": "1"} | os.environ,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise UserError(f"parallel.tp={tp}, parallel.pp={pp}: Megatron does not build it: {lines[-1] if lines else ''}")
    return Layout(**json.loads(done.stdout))


def differences(built: Layout, models: Mapping[str, Architecture], tp: int, pp: int) -> Iterator[str]:
    """Where what is built is not what memory was counted with: a bug of ours, which makes all numbers worthless."""
    for name, model in models.items():
        for stage, (expected, found) in enumerate(zip(ranks(model, tp, pp), built.models[name], strict=True)):
            for rank, each in enumerate(found):
                if each != expected:
                    yield (
                        f"parallel.tp={tp}, parallel.pp={pp}: Megatron's {name} on pipeline rank {stage}, tensor rank "
                        f"{rank} has {each}, expected: {expected}"
                    )
