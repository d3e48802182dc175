from __future__ import annotations

import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest

from bielik_nemo import quantization
from bielik_nemo.config import compose
from bielik_nemo.errors import ConfigError
from bielik_nemo.validation.shapes import source_architecture, target_architecture


def installed(monkeypatch: pytest.MonkeyPatch, *packages: str, capability: str = "") -> None:
    """A machine with these packages, and GPUs of these capabilities, one in a line; empty: without nvidia-smi."""

    def smi(*arguments: object, **settings: object) -> SimpleNamespace:
        if not capability:
            raise FileNotFoundError
        return SimpleNamespace(stdout=capability)

    monkeypatch.setattr(quantization, "find_spec", lambda name: name in packages or None)
    monkeypatch.setattr(subprocess, "run", smi)


def test_rows_must_be_whole_blocks():
    """SmolLM2's 576 are 2.25 * 256 and 18 * 32; Bielik's 4096 and 11264 are 16 and 44 times 256."""
    config = compose("smollm2")
    config.quantize.formats, config.quantize.fallback = list(quantization.FORMATS), False
    first, second = quantization.misfits(config, source_architecture(config))
    assert first == (
        "quantize.formats[2]: found gguf:q6_k, whose rows are whole blocks of 256, with hidden_size=576, allowed: "
        "gguf:f16, gguf:q8_0, fp8, nvfp4; with quantize.fallback=true llama.cpp writes such matrices in blocks of 32"
    )
    assert second.startswith("quantize.formats[3]: found gguf:q4_k_m")
    config.quantize.fallback = True
    assert list(quantization.misfits(config, source_architecture(config))) == []
    odd = replace(source_architecture(config), ffn_hidden_size=1000)  # 31.25 * 32, 62.5 * 16
    assert [line.split()[2] for line in quantization.misfits(config, odd)] == [
        "gguf:q8_0,",
        "gguf:q6_k,",
        "gguf:q4_k_m,",
        "nvfp4,",
    ]
    full = compose("bielik_minitron_7b")
    full.quantize.formats = list(quantization.FORMATS)
    assert list(quantization.misfits(full, target_architecture(full, source_architecture(full)))) == []


def test_llama_cpp_must_be_here(monkeypatch: pytest.MonkeyPatch):
    installed(monkeypatch)
    config = compose("tiny", ["quantize.formats=[gguf:f16,fp8]"])
    assert list(quantization.missing(config)) == [
        'quantize.formats[0]: gguf:f16: llama_cpp is not installed; pip install "bielik_nemo[gguf]"'
    ]


@pytest.mark.parametrize(
    "packages, capability, why",
    [
        ((), "", "vllm is not installed"),
        (("vllm",), "", "this machine has no GPU, and 10 is needed"),
        (("vllm",), "9.0\n9.0\n", "this machine has a GPU of compute capability 9, and 10 is needed"),
        (("vllm",), "10.0\n", ""),
    ],
)
def test_where_nvfp4_runs(packages, capability: str, why: str, monkeypatch: pytest.MonkeyPatch):
    installed(monkeypatch, *packages, capability=capability)
    assert quantization.absent("nvfp4") == why
    assert quantization.runtime("nvfp4") == ("vllm" if not why else "modelopt (simulated)")
    config = compose("tiny", ["quantize.formats=[nvfp4]"])
    assert list(quantization.missing(config)) == []  # simulated
    config.quantize.require_runtime = True
    found = list(quantization.missing(config))
    assert bool(found) == bool(why)
    assert not found or found[0].startswith(f"quantize.formats[0]: found nvfp4, whose runtime is vLLM: {why}; allowed:")


def test_fp8_runs_on_older_gpus(monkeypatch: pytest.MonkeyPatch):
    installed(monkeypatch, "vllm", capability="8.9\n")
    assert quantization.runtime("fp8") == "vllm"


@pytest.mark.parametrize(
    "override, message",
    [
        ("quantize.formats=[gguf:q4]", r"quantize\.formats\[0\]: found 'gguf:q4', allowed: gguf:f16, .*did you mean"),
        ("quantize.formats=[fp8,fp8]", r"quantize\.formats\[1\]: found 'fp8' again, allowed: each format once"),
        ("quantize.max_change.fp8=0", r"quantize\.max_change\.fp8: found 0"),
        ("quantize.calibration_samples=0", r"quantize\.calibration_samples: found 0"),
        ("pipeline.stages=[import_hf,export,quantize]", "found quantize without data, allowed: with data and export"),
        (
            "pipeline.stages=[import_hf,data,export,quantize] quantize.formats=[]",
            r"quantize\.formats: found none, allowed: some of",
        ),
    ],
)
def test_impossible_settings(override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        compose("tiny", override.split())
