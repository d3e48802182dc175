from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from bielik_nemo.architecture import Architecture
from bielik_nemo.formats import gguf_file, gguf_vocabulary, llama, plain

pytest.importorskip("llama_cpp", reason='needs llama_cpp: pip install "bielik_nemo[gguf]"')


@pytest.fixture(scope="module")
def half(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "model.gguf"
    a = Architecture.from_hf(tiny_hf)
    gguf_file.write(tiny_hf, path, a, gguf_vocabulary.read(tiny_hf, a.vocab_size), "gpt-2")
    return path


def test_a_context_is_read_in_parts(half: Path, tiny_hf: Path, monkeypatch: pytest.MonkeyPatch):
    """Forty predictions in batches of 16, 16 and 8."""
    blocks = torch.randint(0, 256, (2, 41), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(llama, "BATCH", 16)
    seen = []
    assert llama.loss(half, blocks, lambda: seen.append(1)) == pytest.approx(
        plain.loss(plain.load(tiny_hf), blocks), rel=1e-3
    )
    assert len(seen) == 2


def test_errors_count_by_their_importance(half: Path, tmp_path: Path):
    """With weight on the first 32 columns of a matrix alone, these come out nearer to what they were."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    def errors(path: Path) -> tuple[float, float]:
        tensor = next(each for each in GGUFReader(path).tensors if each.name == name)
        exact = next(each for each in GGUFReader(half).tensors if each.name == name)
        squares = (dequantize(tensor.data, tensor.tensor_type) - exact.data.astype("float32")) ** 2
        return squares[:, ::2].sum(), squares[:, 1::2].sum()

    name = "blk.1.ffn_up.weight"
    weights = torch.where(torch.arange(64) % 2 == 0, 1.0, 1e-6)
    llama.quantize(half, tmp_path / "alike.gguf", "q4_k_m", {})
    llama.quantize(half, tmp_path / "weighed.gguf", "q4_k_m", {name: weights})
    alike, weighed = errors(tmp_path / "alike.gguf"), errors(tmp_path / "weighed.gguf")
    assert weighed[0] < 0.9 * alike[0] and weighed[1] > alike[1]


def test_the_binding_still_takes_errors_for_details():
    """When this fails, `llama._log` can go."""
    from llama_cpp._logger import GGML_LOG_LEVEL_TO_LOGGING_LEVEL

    assert GGML_LOG_LEVEL_TO_LOGGING_LEVEL[llama.ERROR] == logging.DEBUG
