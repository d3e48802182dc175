"""Merging by streaming: what comes out, in how much memory. The arithmetic is tested in tests/align."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bielik_nemo.align.merge import slerp
from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import merging
from bielik_nemo.engine.hf_reader import SafetensorsReader, expected_shapes
from bielik_nemo.errors import CheckpointError


@pytest.fixture
def pair(random_hf: Callable[[str], Path], tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint in one file, and another of its shape in bfloat16 and several."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(random_hf("qwen2"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.bfloat16().save_pretrained(tmp_path / "other", max_shard_size="100KB")
    return random_hf("qwen2"), tmp_path / "other"


def read(directory: Path) -> dict[str, torch.Tensor]:
    reader = SafetensorsReader(directory)
    return {name: reader.read(name, 0, 0, reader.shape(name)[0]).clone() for name in reader.names()}


def test_a_weighted_mean_of_two_checkpoints(pair, tmp_path):
    """A quarter and three quarters, in float64 and rounded once; transformers loads it with nothing missing."""
    a, target = Architecture.from_hf(pair[0]), tmp_path / "merged"
    assert merging.merge(pair, [1, 3], "linear", target, a, dtype="float32") == {}
    one, other, found = map(read, (*pair, target))
    assert found.keys() == one.keys() == other.keys()
    for name in found:
        assert torch.equal(found[name], (0.25 * one[name].double() + 0.75 * other[name].double()).float())
    _, report = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    assert {key: list(names) for key, names in report.items() if names} == {}
    assert {path.name for path in tmp_path.iterdir()} == {"other", "merged"}


def test_one_source_alone_comes_back(pair, tmp_path):
    a = Architecture.from_hf(pair[0])
    merging.merge(pair[:1] * 3, [1, 1, 1], "linear", tmp_path / "merged", a, dtype="float32")
    before, found = read(pair[0]), read(tmp_path / "merged")
    assert all(torch.equal(found[name], before[name]) for name in before)


def test_slerp_tells_every_angle(pair, tmp_path):
    a = Architecture.from_hf(pair[0])
    angles = merging.merge(pair, [2, 6], "slerp", tmp_path / "merged", a, dtype="float32", max_shard_gib=1e-4)
    one, other, found = map(read, (*pair, tmp_path / "merged"))
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 1
    for name in found:
        expected, between = slerp(one[name], other[name], 0.75)
        assert torch.equal(found[name], expected.float()) and angles[name] == between
    assert min(angles.values()) > 0.05  # none is the straight line


def test_a_damaged_source_leaves_nothing(pair, tmp_path):
    a = Architecture.from_hf(pair[0])
    tensors = load_file(pair[0] / "model.safetensors")
    del tensors["model.norm.weight"]
    broken = tmp_path / "broken"
    broken.mkdir()
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"broken: 1 tensors are missing, first model\.norm\.weight"):
        merging.merge([pair[0], broken], [1, 1], "linear", tmp_path / "merged", a)
    (broken / "model.safetensors").write_bytes((pair[0] / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        merging.merge([pair[0], broken], [1, 1], "linear", tmp_path / "merged", a)
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")  # would be a pickle
    with pytest.raises(CheckpointError, match=r"broken: holds neither model\.safetensors nor"):
        merging.merge([pair[0], broken], [1, 1], "linear", tmp_path / "merged", a)
    assert {path.name for path in tmp_path.iterdir()} == {"other", "broken"}


CHILD = """
import json, re, sys
from pathlib import Path
from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import merging

# Not ru_maxrss, which is never less than the parent's at the time of the fork.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
a, directory = Architecture(**json.loads(sys.argv[1])), Path(sys.argv[2])
before = peak()
for method, count in (("linear", 5), ("slerp", 2)):
    weights = list(range(1, count + 1))
    merging.merge([directory] * count, weights, method, directory / method, a, max_shard_gib=16 / 1024)
    print(peak() - before)
"""


def test_memory_is_not_that_of_a_model(tmp_path):
    """Five models of 12 * (3 * 512 * 4096 + 4 * 512^2) parameters in bf16, 170 MiB each, are merged in less than one:
    an output shard of 16 MiB, and tensors of 2M parameters, 16 MiB in float64, a few times."""
    a = Architecture(12, 512, 4096, 4, 4, 128, 1000, tie_embeddings=True)
    random, shapes = torch.empty(512 * 4096, dtype=torch.bfloat16).normal_(), expected_shapes(a)
    tensors = {name: random[: torch.Size(shape).numel()].view(shape).clone() for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    del tensors
    assert (tmp_path / "model.safetensors").stat().st_size > 160 * 2**20
    command = [sys.executable, "-c", CHILD, json.dumps(asdict(a)), str(tmp_path)]
    # Without it glibc keeps freed blocks of up to 32 MiB for later, which here is all there are.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert max(float(line) for line in done.stdout.split()[-2:]) < 150
