"""Cutting by streaming: what goes where, in how much memory. That the result is Model Optimizer's is tested in
test_model_optimizer.py."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import streaming
from bielik_nemo.engine.hf_reader import SafetensorsReader, expected_shapes
from bielik_nemo.errors import CheckpointError
from bielik_nemo.prune.kept import Kept

KEPT = Kept([1, 3], [5, 0, 7], {1: [2, 0], 3: [4, 1]}, {1: [1, 2], 3: [0, 3]})


def test_where_a_tensor_comes_from():
    """Heads of two channels: heads 0 and 3 are rows 0, 1, 6, 7."""
    assert streaming.origin("model.layers.1.self_attn.q_proj.weight", KEPT, 2) == (
        "model.layers.3.self_attn.q_proj.weight",
        [[0, 1, 6, 7], [5, 0, 7]],
    )
    assert streaming.origin("model.layers.0.mlp.down_proj.weight", KEPT, 2) == (
        "model.layers.1.mlp.down_proj.weight",
        [[5, 0, 7], [2, 0]],
    )
    assert streaming.origin("model.layers.0.self_attn.k_proj.bias", KEPT, 2) == (
        "model.layers.1.self_attn.k_proj.bias",
        [None],
    )
    assert streaming.origin("lm_head.weight", KEPT, 2) == ("lm_head.weight", [None, [5, 0, 7]])


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_every_tensor_has_a_place(qkv_bias):
    family = "qwen2" if qkv_bias else "llama"
    target = Architecture(2, 3, 2, 2, 2, 2, 8, tie_embeddings=False, qkv_bias=qkv_bias, model_type=family)
    names = {streaming.origin(name, KEPT, 2)[0] for name in expected_shapes(target)}
    assert len(names) == len(expected_shapes(target))


@pytest.fixture
def cut_to(inputs: Path, tmp_path: Path):
    """`cut_to(kind, **settings)`: the directory of a checkpoint cut on every axis, in an order of its own."""

    def run(kind: str, **settings) -> Path:
        a = Architecture.from_hf(inputs / kind)
        target = a.pruned_to(num_layers=2, hidden_size=40, ffn_hidden_size=56, num_attention_heads=2)
        draw = torch.Generator().manual_seed(0)

        def some(total: int, count: int) -> list[int]:
            return torch.randperm(total, generator=draw)[:count].tolist()

        ffn, heads = {i: some(96, 56) for i in (0, 2)}, {0: [1, 2], 2: [0, 3]}
        streaming.cut(inputs / kind, tmp_path / "cut", a, target, Kept([0, 2], some(64, 40), ffn, heads), **settings)
        return tmp_path / "cut"

    return run


def test_transformers_loads_it_with_nothing_missing(cut_to, inputs, tmp_path):
    directory = cut_to("qwen2", dtype="float32")
    _, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert {key: list(found) for key, found in report.items() if found} == {}
    config = json.loads((directory / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"], config["torch_dtype"]) == (2, 40, "float32")
    assert [path.name for path in tmp_path.iterdir()] == ["cut"]


def test_shards_in_and_out(cut_to):
    """The largest tensor, 56 * 40 * 4 = 8,960 bytes of the FFN but 256 * 40 * 4 = 40,960 of the embedding, is a shard
    of its own."""
    whole = load_file(cut_to("sharded", dtype="float32") / "model.safetensors")
    directory = cut_to("sharded", dtype="float32", max_shard_gib=3e4 / 2**30)
    files = sorted(directory.glob("*.safetensors"))
    assert len(files) > 3
    assert all(path.stat().st_size < 4.5e4 for path in files)
    reader = SafetensorsReader(directory)
    assert reader.names() == whole.keys()
    assert all(torch.equal(reader.read(name, 0, 0, len(whole[name])), whole[name]) for name in whole)


def test_tokenizer_files_come_along_and_weights_are_rounded(cut_to, inputs, tmp_path):
    exact = load_file(cut_to("bf16", dtype="float32") / "model.safetensors")
    rounded = load_file(cut_to("bf16", dtype="bfloat16") / "model.safetensors")
    assert all(torch.equal(rounded[name], exact[name].bfloat16()) for name in exact)


def test_a_source_that_is_cut_short(inputs, tmp_path):
    a = Architecture.from_hf(inputs / "llama")
    broken = tmp_path / "broken"
    broken.mkdir()
    tensors = load_file(inputs / "llama" / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(63)
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has shape \[63\], config\.json says \[64\]"):
        streaming.cut(broken, tmp_path / "cut", a, a, KEPT)
    (broken / "model.safetensors").write_bytes((inputs / "llama" / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        streaming.cut(broken, tmp_path / "cut", a, a, KEPT)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


CHILD = """
import json, re, sys
from pathlib import Path
from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import streaming
from bielik_nemo.prune.kept import Kept

# Not ru_maxrss, which is never less than the parent's at the time of the fork.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
source, directory = Architecture(**json.loads(sys.argv[1])), Path(sys.argv[2])
layers = range(source.num_layers)
kept = Kept(list(layers), list(range(959, -1, -1)), dict.fromkeys(layers, [*range(0, 4096, 2)]),
            dict.fromkeys(layers, [*range(source.num_attention_heads)]))
target = source.pruned_to(hidden_size=960, ffn_hidden_size=2048)
before = peak()
streaming.cut(directory, directory / "cut", source, target, kept, max_shard_gib=16 / 1024)
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_model(tmp_path):
    """A file of 12 * (3 * 1024 * 4096 + 4 * 1024^2) parameters in bf16, 384 MiB, is cut within 100 MiB: an output shard
    of 16 MiB and a tensor of 8 MiB a few times. With the file kept open it would be more than 400 MiB."""
    a = Architecture(12, 1024, 4096, 8, 8, 128, 1000, tie_embeddings=True)
    random, shapes = torch.empty(1024 * 4096, dtype=torch.bfloat16).normal_(), expected_shapes(a)
    tensors = {name: random[: torch.Size(shape).numel()].view(shape).clone() for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    del tensors
    assert (tmp_path / "model.safetensors").stat().st_size > 384 * 2**20
    command = [sys.executable, "-c", CHILD, json.dumps(asdict(a)), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 100
