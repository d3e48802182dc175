"""The stage `quantize` on a finished run: what it leaves, and that nothing is left of a format that loses too much."""

from __future__ import annotations

import os

import pytest

from bielik_nemo.artifacts import read_json
from bielik_nemo.config import CHAIN
from bielik_nemo.errors import ConfigError, GateError
from bielik_nemo.quantization import FORMATS, SIMULATED

pytest.importorskip("llama_cpp", reason='needs llama_cpp: pip install "bielik_nemo[gguf]"')

STAGES = f"pipeline.stages=[{','.join([*CHAIN, 'quantize'])}]"


@pytest.fixture(scope="module")
def quantized(chain):
    """A run with all formats."""
    run_dir = chain.copy("quantized")
    formats = f"quantize.formats=[{','.join(FORMATS)}]"
    chain.run(run_dir, STAGES, formats, "quantize.fallback=true", "quantize.calibration_samples=4", stages=["quantize"])
    return run_dir


def test_formats_are_measured_where_the_export_is(quantized):
    """Bits: 16 of a weight in float16 and a little more, 8.5 in q8_0 (a scale of 16 bits for 32 weights).

    Embeddings and head, 2 * 263 * 64 of the 163,136, stay in float32 in FP8 and NVFP4: 8 and 4.5 bits become 13 and 10.
    """
    found = read_json(quantized / "quantize" / "metrics.json")
    assert found["loss"] == pytest.approx(
        read_json(quantized / "evaluate" / "metrics.json")["held_out_loss"]["distilled"], rel=1e-5
    )
    rows = {row["name"]: row for row in found["formats"]}
    assert list(rows) == list(FORMATS)
    assert found["tokens"] == 1024
    assert abs(rows["gguf:f16"]["change"]) < 1e-3
    assert 16 < rows["gguf:f16"]["bits_per_weight"] < 17 and 8.5 < rows["gguf:q8_0"]["bits_per_weight"] < 9.5
    assert 12.9 < rows["fp8"]["bits_per_weight"] < 13.9 and 10 < rows["nvfp4"]["bits_per_weight"] < 11
    assert [row["imatrix"] for row in rows.values()] == [False, False, True, True, False, False]
    assert [row["runtime"] for row in rows.values()] == ["llama.cpp"] * 4 + [SIMULATED] * 2
    for name, row in rows.items():
        file = "" if name.startswith("gguf") else "model.safetensors"
        assert (quantized / "quantize" / row["path"] / file).stat().st_size == row["bytes"]
    assert sorted(os.listdir(quantized / "quantize")) == sorted(
        ["config.yaml", "fingerprint", "formats", "log.txt", "manifest.json", "metrics.json"]
    )


def test_a_format_that_loses_too_much_is_not_left(chain):
    run_dir = chain.copy("lossy")
    settings = (STAGES, "quantize.formats=[gguf:f16,gguf:q8_0]", "quantize.max_change.q8_0=1e-9")
    with pytest.raises(GateError, match=r"gguf:q8_0: loss .*, quantize\.max_change\.q8_0=1e-09 is allowed"):
        chain.run(run_dir, *settings, stages=["quantize"])
    assert sorted(os.listdir(run_dir / "quantize")) == ["fingerprint", "log.txt"]


def test_k_quants_of_short_rows_are_refused_before_anything_runs(chain):
    run_dir = chain.copy("rows")
    with pytest.raises(ConfigError, match=r"formats\[2\]: found gguf:q6_k.*blocks of 256, with hidden_size=64"):
        chain.run(run_dir, STAGES, "quantize.fallback=false", stages=["quantize"])
    assert not (run_dir / "quantize").exists()
