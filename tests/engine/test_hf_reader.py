"""A damaged or foreign Hugging Face checkpoint is one error that names the file or tensor, before any work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine.hf_reader import INDEX, SafetensorsReader, check_source, expected_shapes
from bielik_nemo.errors import CheckpointError

GATE = "model.layers.3.mlp.gate_proj.weight"


@pytest.fixture
def sharded(random_hf, tmp_path) -> Path:
    """A checkpoint of several files that may be damaged."""
    return Path(shutil.copytree(random_hf("sharded"), tmp_path / "model"))


@pytest.fixture
def whole(random_hf, tmp_path) -> Path:
    """The same for one file."""
    return Path(shutil.copytree(random_hf("llama"), tmp_path / "model"))


def check(directory: Path) -> None:
    check_source(directory, Architecture.from_hf(directory))


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def replace(path: Path, change) -> None:
    held = load_file(path)
    change(held)
    save_file(held, path)


@pytest.mark.parametrize("kind", ["llama", "tied", "qwen2", "mistral", "sharded", "bf16"])
def test_what_transformers_writes_is_accepted_and_holds_the_counted_parameters(kind, random_hf):
    a = Architecture.from_hf(random_hf(kind))
    check_source(random_hf(kind), a)
    assert sum(torch.Size(shape).numel() for shape in expected_shapes(a).values()) == a.num_parameters()


def test_slices_are_those_of_the_file(sharded):
    reader = SafetensorsReader(sharded)
    (gate,) = (held[GATE] for held in map(load_file, files(sharded)) if GATE in held)
    assert reader.shape(GATE) == [96, 64]
    assert torch.equal(reader.read(GATE, 0, 10, 20), gate[10:20])
    assert torch.equal(reader.read(GATE, 1, 32, 64), gate[:, 32:])
    with pytest.raises(CheckpointError, match=rf"{GATE} has shape \[96, 64\], config.json wants at least 97"):
        reader.read(GATE, 0, 0, 97)


@pytest.mark.parametrize("which", [0, -1], ids=["first", "last"])
@pytest.mark.parametrize("keep", [lambda size: size - 1, lambda size: size // 2, lambda size: 5, lambda size: 0])
def test_a_truncated_shard_is_named(which, keep, sharded):
    file = files(sharded)[which]
    cut(file, keep(file.stat().st_size))
    with pytest.raises(CheckpointError, match=f"{file}: missing, truncated or not a safetensors file"):
        check(sharded)


def test_a_truncated_single_file_is_named(whole):
    cut(whole / "model.safetensors", 10_000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing, truncated"):
        check(whole)


def test_a_missing_file_is_named(sharded):
    gone = files(sharded)[1]
    gone.unlink()
    with pytest.raises(CheckpointError, match=f"{gone}: missing"):
        check(sharded)


def test_a_directory_without_weights(whole):
    (whole / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"holds neither model.safetensors nor {INDEX}"):
        check(whole)


def test_a_missing_tensor_is_named(whole):
    replace(whole / "model.safetensors", lambda held: held.pop(GATE))
    with pytest.raises(CheckpointError, match=f"1 tensors are missing, first {GATE}"):
        check(whole)


def test_a_missing_index_entry_is_named(sharded):
    edit(sharded / INDEX, lambda index: index["weight_map"].pop(GATE))
    with pytest.raises(CheckpointError, match=f"1 tensors are missing, first {GATE}"):
        check(sharded)


def test_an_index_that_names_the_wrong_file(sharded):
    first = files(sharded)[0].name
    assert GATE not in load_file(sharded / first)
    edit(sharded / INDEX, lambda index: index["weight_map"].update({GATE: first}))
    with pytest.raises(CheckpointError, match=rf"{first}: .*{GATE}"):
        check(sharded)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "\xff"])
def test_an_index_that_is_none(text, sharded):
    (sharded / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=f"{INDEX}: not a safetensors index"):
        check(sharded)


@pytest.mark.parametrize(
    "name", ["model.layers.4.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias", "score.weight"]
)
def test_an_unexpected_tensor_is_named(name, whole):
    """A fifth layer, a bias, a classifier: with them the model computes something else."""
    replace(whole / "model.safetensors", lambda held: held.update({name: torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=f"1 tensors have no place in this architecture, first {name}"):
        check(whole)


def test_rotary_buffers_of_old_checkpoints_are_no_weights(whole):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    replace(whole / "model.safetensors", lambda held: held.update({name: torch.zeros(16)}))
    check(whole)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        (
            "intermediate_size",
            80,
            r"model.layers.0.mlp.gate_proj.weight has shape \[96, 64\], config.json says \[80, 64\]",
        ),
        ("vocab_size", 264, r"embed_tokens.weight has shape \[263, 64\], config.json says \[264, 64\]"),
        ("head_dim", 16, r"q_proj.weight has shape \[128, 64\], config.json says \[64, 64\]"),
        ("num_key_value_heads", 4, r"k_proj.weight has shape \[64, 64\], config.json says \[128, 64\]"),
        ("num_hidden_layers", 5, "9 tensors are missing, first model.layers.4"),
        ("num_hidden_layers", 3, "9 tensors have no place in this architecture, first model.layers.3"),
    ],
)
def test_a_shape_that_is_not_config_json_s(key, value, named, whole):
    edit(whole / "config.json", lambda config: config.update({key: value}))
    with pytest.raises(CheckpointError, match=named):
        check(whole)


def test_an_untied_model_without_an_output_matrix(whole):
    replace(whole / "model.safetensors", lambda held: held.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"first lm_head.weight"):
        check(whole)
