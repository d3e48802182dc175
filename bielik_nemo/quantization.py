"""The formats that a model can be written in, and what the runtime of each asks of its shape and of this machine."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config

GGUF = "gguf:"
LLAMA_CPP, VLLM, SIMULATED = "llama.cpp", "vllm", "modelopt (simulated)"
SMALL_BLOCK = 32
"""Of llama.cpp's formats that it takes where rows do not fill the blocks of a k-quant."""


@dataclass(frozen=True)
class Format:
    """What is known of a format without writing it.

    Attributes:
        runtime: what it is made for.
        block: weights of a row that share a scale; rows must be multiples of it.
        capability: compute capability of the oldest GPU whose arithmetic has it; 0: none is needed.
    """

    runtime: str
    block: int
    capability: float = 0.0


FORMATS = {
    "gguf:f16": Format(LLAMA_CPP, 1),
    "gguf:q8_0": Format(LLAMA_CPP, SMALL_BLOCK),
    "gguf:q6_k": Format(LLAMA_CPP, 256),
    "gguf:q4_k_m": Format(LLAMA_CPP, 256),
    "fp8": Format(VLLM, 1, 8.9),
    "nvfp4": Format(VLLM, 16, 10.0),
}


def rows(a: Architecture) -> dict[str, int]:
    """Lengths of the rows of all matrices: inputs of the projections, embeddings, of the FFN's and attention's last."""
    query = a.num_attention_heads * a.head_dim
    return {"hidden_size": a.hidden_size, "ffn_hidden_size": a.ffn_hidden_size, "num_attention_heads * head_dim": query}


def short(name: str) -> str:
    """A format without its container: `q8_0` of `gguf:q8_0`."""
    return name.removeprefix(GGUF)


def runtime(name: str) -> str:
    """What measures a format here: its own runtime, or Model Optimizer's arithmetic in place of it."""
    return FORMATS[name].runtime if FORMATS[name].runtime == LLAMA_CPP or not absent(name) else SIMULATED


def absent(name: str) -> str:
    """Why a format's own runtime cannot run it on this machine; empty: it can."""
    wanted = FORMATS[name]
    if wanted.runtime == LLAMA_CPP:
        return "" if find_spec("llama_cpp") else "llama_cpp is not installed"
    if not find_spec("vllm"):
        return "vllm is not installed"
    found = capability()
    if found < wanted.capability:
        has = f"a GPU of compute capability {found:g}" if found else "no GPU"
        return f"this machine has {has}, and {wanted.capability:g} is needed"
    return ""


def capability() -> float:
    """Compute capability of the oldest GPU of this machine; 0: there is none."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        return min((float(line) for line in said.split()), default=0.0)
    except (OSError, ValueError, subprocess.SubprocessError):
        return 0.0


def missing(config: Config) -> Iterator[str]:
    """Formats whose runtime is not here, where it must be."""
    for index, name in enumerate(config.quantize.formats):
        why = absent(name)
        if why and FORMATS[name].runtime == LLAMA_CPP:
            yield f'quantize.formats[{index}]: {name}: {why}; pip install "bielik_nemo[gguf]"'
        elif why and config.quantize.require_runtime:
            allowed = "a machine whose vLLM can load it, or quantize.require_runtime=false, which simulates it"
            yield f"quantize.formats[{index}]: found {name}, whose runtime is vLLM: {why}; allowed: {allowed}"


def misfits(config: Config, a: Architecture) -> Iterator[str]:
    """Formats whose blocks the rows of this shape do not fill."""
    for index, name in enumerate(config.quantize.formats):
        block = FORMATS[name].block
        if config.quantize.fallback and FORMATS[name].runtime == LLAMA_CPP:
            block = min(block, SMALL_BLOCK)
        if wrong := [f"{size}={length}" for size, length in rows(a).items() if length % block]:
            other = ""
            if block > SMALL_BLOCK:
                other = "; with quantize.fallback=true llama.cpp writes such matrices in blocks of 32"
            yield (
                f"quantize.formats[{index}]: found {name}, whose rows are whole blocks of {block}, with {wrong[0]}, "
                f"allowed: {_allowed(a, config.quantize.fallback)}{other}"
            )


def _allowed(a: Architecture, fallback: bool) -> str:
    def fits(each: Format) -> bool:
        block = min(each.block, SMALL_BLOCK) if fallback and each.runtime == LLAMA_CPP else each.block
        return not any(length % block for length in rows(a).values())

    return ", ".join(name for name, each in FORMATS.items() if fits(each))
