"""Checkpoints that several tests start from, each made once per session; nothing here needs a network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported: two OpenMP threads per process are slower than one on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
_SIZES |= {"num_key_value_heads": 2, "vocab_size": 263, "max_position_embeddings": 256, "initializer_range": 0.15}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# Kind -> (family, configuration). Vocabularies: 263 is prime, 256 and 512 need no padding, 1000 needs some.
KINDS = {
    "llama": ("llama", {"head_dim": 32, "tie_word_embeddings": False, "rope_theta": 1e5}),
    "llama_student": ("llama", {"head_dim": 32, "num_hidden_layers": 2, "intermediate_size": 64, "rope_theta": 1e5}),
    "tied": ("llama", {"tie_word_embeddings": True, "vocab_size": 512, "rope_theta": 1e6}),
    "tied_student": (
        "llama",
        {"tie_word_embeddings": True, "vocab_size": 512, "num_hidden_layers": 2, "hidden_size": 48, "head_dim": 16},
    ),
    "mistral": ("mistral", {"head_dim": 24, "vocab_size": 1000, "sliding_window": None, "rope_theta": 1e6}),
    "window": ("mistral", {"sliding_window": 16}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "llama3_rope": ("llama", {"rope_scaling": {**_LLAMA3, "original_max_position_embeddings": 64}}),
    "sharded": ("llama", {"vocab_size": 256}),
    "bf16": ("llama", {}),
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of one folder go to one process, which makes its fixtures once (`make test` has two processes).

    Not by xdist's marks for groups: those of 3.8.0 do nothing under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Folders(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "/".join(nodeid.partition("::")[0].split("/")[:2])

    return Folders(config, log)


def _random_checkpoint(kind: str, directory: Path) -> None:
    """Random weights large enough that attention is far from uniform and logits spread by more than 1; norms off 1."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family, settings = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(list(KINDS).index(kind))
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **_SIZES | settings))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.normal_(1.0, 0.2)
                elif name.endswith("bias"):
                    parameter.normal_(0.0, 0.5)
                elif name.startswith("model.layers.1.") and ("o_proj" in name or "down_proj" in name):
                    parameter *= 0.2  # layers by importance are not simply first to last
    if kind == "bf16":
        model = model.bfloat16()
    model.save_pretrained(directory, max_shard_size="100KB" if kind == "sharded" else "5GB")


@pytest.fixture(scope="session")
def random_hf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`random_hf(kind)`: Hugging Face directory of one of `KINDS`, random weights, no tokenizer; do not change it."""
    base = tmp_path_factory.mktemp("random_hf")

    def build(kind: str) -> Path:
        if not (base / kind).is_dir():
            _random_checkpoint(kind, base / kind)
        return base / kind

    build.kinds = tuple(KINDS)
    return build


@pytest.fixture(scope="session")
def tiny_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hugging Face directory of the trained tiny model with its byte tokenizer; do not change it."""
    from bielik_nemo.data import tiny

    directory = tmp_path_factory.mktemp("tiny_hf") / "tiny"
    tiny.build(directory)
    return directory
