"""What Megatron builds on the meta device is what arithmetic counts and what is built for real."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from bielik_nemo.architecture import Architecture
from bielik_nemo.budget.ranks import parameters, ranks
from bielik_nemo.engine import distributed, layout, model

SMALL = Architecture(4, 64, 160, 8, 4, 16, 263, False)
SHAPES = {
    "llama": SMALL,
    "tied": replace(SMALL, tie_embeddings=True),
    "biased": replace(SMALL, qkv_bias=True, model_type="qwen2", tie_embeddings=True),
    "cut": replace(SMALL, hidden_size=48, head_dim=16),
}


@pytest.mark.parametrize(
    "name, tp, pp",
    [("llama", 2, 2), ("llama", 1, 4), ("tied", 1, 1), ("tied", 2, 2), ("biased", 2, 2), ("cut", 4, 1)],
)
def test_ranks_hold_what_arithmetic_counts(name: str, tp: int, pp: int):
    expected = ranks(SHAPES[name], tp, pp)
    assert layout.ranks(SHAPES[name], tp, pp) == [[each] * tp for each in expected]


def test_counted_is_what_is_built_for_real():
    with distributed.model_parallel():
        built = model.build(model.gpt_config(SMALL), SMALL)
        count = sum(parameter.numel() for parameter in built.parameters())
    assert [[parameters(rank) for rank in each] for each in layout.ranks(SMALL, 1, 1)] == [[count]]


def test_the_full_size_in_a_process_of_its_own():
    """40 layers of 4096 and an FFN of 11264 on 2 pipeline ranks of 8 tensor ranks: 7,477,727,232 parameters, of which
    norms, (2 * 40 + 1) * 4096, are on all eight; in less than a gigabyte, libraries included."""
    student = Architecture(40, 4096, 11264, 32, 8, 128, 32128, False)
    request = json.dumps({"models": {"target": asdict(student)}, "tp": 8, "pp": 2})
    command = [sys.executable, "-m", "bielik_nemo.engine.layout"]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    counts = [parameters(rank) for stage in found["models"]["target"] for rank in stage]
    norms = (2 * 40 + 1) * 4096
    assert len(counts) == 16 and sum(counts) == 7_477_727_232 + 7 * norms
    assert [stage[0]["num_layers"] for stage in found["models"]["target"]] == [20, 20]
    assert found["libraries"] < 2**30
