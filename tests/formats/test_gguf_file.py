"""GGUF files that llama.cpp itself loads, against plain transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bielik_nemo.architecture import Architecture
from bielik_nemo.data.smollm2 import undo_permutation
from bielik_nemo.engine.hf_reader import expected_shapes
from bielik_nemo.errors import CheckpointError, GateError
from bielik_nemo.formats import gguf_file, gguf_vocabulary, llama, plain

pytest.importorskip("llama_cpp", reason='needs llama_cpp: pip install "bielik_nemo[gguf]"')

SEQUENCE = 48


def written(directory: Path, path: Path) -> Path:
    a = Architecture.from_hf(directory)
    gguf_file.write(directory, path, a, gguf_vocabulary.read(directory, a.vocab_size), "gpt-2")
    return path


@pytest.fixture
def blocks() -> torch.Tensor:
    return torch.randint(0, 256, (3, SEQUENCE + 1), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["llama", "tied", "mistral", "qwen2", "llama3_rope", "bf16"])
def test_llama_cpp_has_the_loss_of_transformers(kind: str, speaking, blocks: torch.Tensor, tmp_path: Path):
    """Every kind of model that is read: any head_dim, tied or not, biases, RoPE plain and scaled, grouped heads.

    Rows of query and key in Hugging Face's order change these losses by more than 1 %.
    """
    directory = speaking(kind)
    expected = plain.loss(plain.load(directory), blocks)
    found = llama.loss(written(directory, tmp_path / "model.gguf"), blocks)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", ["llama", "llama3_rope"])
def test_the_comparison_sees_what_is_forgotten(
    kind: str, speaking, blocks: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    directory = speaking(kind)
    expected = plain.loss(plain.load(directory), blocks)
    if kind == "llama":
        monkeypatch.setattr(gguf_file, "in_order", lambda name, weight, a: weight)
    else:
        monkeypatch.setattr(gguf_file, "rope_factors", lambda a: torch.ones(a.head_dim // 2))
    found = llama.loss(written(directory, tmp_path / "model.gguf"), blocks)
    assert abs(found / expected - 1) > 2e-3


def test_rows_of_queries_in_llama_cpps_order():
    """One head of 4 rows 0 1 | 2 3: the pairs (0, 2) and (1, 3) stand together. Two heads: each for itself."""
    a = Architecture(
        num_layers=1,
        hidden_size=8,
        ffn_hidden_size=8,
        num_attention_heads=2,
        num_query_groups=1,
        head_dim=4,
        vocab_size=8,
        max_position_embeddings=8,
        tie_embeddings=False,
    )
    column = torch.arange(8.0)[:, None]
    assert gguf_file.in_order("model.layers.0.self_attn.q_proj.weight", column, a).flatten().tolist() == [
        0, 2, 1, 3, 4, 6, 5, 7,
    ]  # fmt: skip
    assert gguf_file.in_order("model.layers.0.self_attn.v_proj.weight", column, a) is column
    weight = torch.randn(8, 3)
    turned = gguf_file.in_order("model.layers.0.self_attn.k_proj.weight", weight, a)
    assert torch.equal(torch.from_numpy(undo_permutation(turned.numpy(), 2)), weight)


def test_every_tensor_has_a_name_of_its_own(random_hf):
    for kind in ("llama", "tied", "qwen2"):
        a = Architecture.from_hf(random_hf(kind))
        names = gguf_file.gguf_names(a)
        assert names.keys() == expected_shapes(a).keys() and None not in names.values()
        assert len(set(names.values())) == len(names)
    assert names["model.layers.3.self_attn.q_proj.bias"] == "blk.3.attn_q.bias"


def test_a_window_limits_the_context(speaking, tmp_path: Path):
    """llama.cpp has no window for this family: within 16 tokens there is no difference."""
    from gguf import GGUFReader

    reader = GGUFReader(written(speaking("window"), tmp_path / "model.gguf"))
    assert reader.fields["llama.context_length"].contents() == 16


def test_weights_beyond_float16_are_refused(speaking, tmp_path: Path):
    shutil.copytree(speaking("llama"), tmp_path / "large")
    weights = load_file(tmp_path / "large" / "model.safetensors")
    weights["lm_head.weight"][0, 0] = 7e4
    save_file(weights, tmp_path / "large" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GateError, match=r"lm_head\.weight has weights beyond float16"):
        written(tmp_path / "large", tmp_path / "model.gguf")


def test_a_damaged_file_is_one_line(speaking, blocks: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = written(speaking("llama"), tmp_path / "model.gguf")
    llama.loss(path, blocks)
    assert "llama_model_load" not in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"model\.gguf: llama\.cpp cannot load it"):
        llama.loss(path, blocks)
    assert "llama_model_load: error loading model" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="cannot write it as q8_0"):
        llama.quantize(path, tmp_path / "other.gguf", "q8_0", {})
