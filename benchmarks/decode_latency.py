"""Measures the table that `prune.search.latency_table` names: milliseconds of one layer's decode step, by its widths.

  python benchmarks/decode_latency.py experiment=tiny prune=auto 'prune.search={max_latency_ms:9,latency_table:t.json}'

Takes the overrides of a run and writes its latency table: every hidden size, FFN and number of heads of its search, at
its `context` and `batch_size`, in `model.dtype`, as transformers runs a Llama layer on this machine's GPU, or CPU where
there is none, one new token after a full KV cache. `base` is embedding, last norm and output matrix. Each number is the
median of 20 steps after 3. Weights are random: time does not depend on them.
"""

from __future__ import annotations

import itertools
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from bielik_nemo import artifacts, preflight, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import compose
from bielik_nemo.config_prune import Search
from bielik_nemo.prune import search

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def milliseconds(step: Callable[[], object]) -> float:
    """Median of 20 steps."""
    seconds = []
    for _ in range(23):
        start = time.perf_counter()
        step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return round(1000 * statistics.median(seconds[3:]), 6)


def layer(shape: Architecture, settings: Search) -> float:
    """Milliseconds of one layer of this shape."""
    hf = LlamaConfig(**{k: v for k, v in shape.to_hf().items() if k != "architectures"}, attn_implementation="sdpa")
    module, rotary = LlamaDecoderLayer(hf, 0).eval(), LlamaRotaryEmbedding(hf, device=DEVICE)
    states = torch.randn(settings.batch_size, 1, shape.hidden_size)
    past = torch.randn(2, settings.batch_size, shape.num_query_groups, settings.context - 1, shape.head_dim)
    cache, position = DynamicCache(), torch.full((1, 1), settings.context - 1)
    cache.update(past[0], past[1], 0)
    turned = rotary(states, position.to(DEVICE))

    def step() -> None:
        module(states, position_embeddings=turned, past_key_values=cache, use_cache=True)
        cache.crop(settings.context - 1)

    return milliseconds(step)


def base(shape: Architecture, settings: Search) -> float:
    """Milliseconds of what a model of this shape has once."""
    embedding = torch.nn.Embedding(shape.vocab_size, shape.hidden_size)
    norm = LlamaRMSNorm(shape.hidden_size)
    head = torch.nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
    tokens = torch.zeros(settings.batch_size, 1, dtype=torch.int64)
    return milliseconds(lambda: head(norm(embedding(tokens))))


@torch.inference_mode()
def main(overrides: list[str]) -> None:
    """Measure every shape of the search and write the table."""
    config = compose("", overrides)
    settings, source = config.prune.search, preflight.architecture(config)
    _, hidden, ffn, heads = search.axes(source, search.fixed(config, source), settings).values()
    torch.set_default_dtype(getattr(torch, config.model.dtype))
    torch.set_default_device(DEVICE)
    layers = []
    with ui.progress("layers", len(hidden) * len(ffn) * len(heads)) as advance:
        for widths in itertools.product(hidden, ffn, heads):
            names = ("hidden_size", "ffn_hidden_size", "num_attention_heads")
            measured = layer(source.pruned_to(1, *widths), settings)
            layers.append(dict(zip(names, widths, strict=True)) | {"milliseconds": measured})
            advance(f"{measured:.3f} ms")
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else platform.processor() or platform.machine()
    known = {"device": device, "dtype": config.model.dtype, "torch": torch.__version__}
    rest = [{"hidden_size": h, "milliseconds": base(source.pruned_to(1, h), settings)} for h in hidden]
    measured = {"context": settings.context, "batch_size": settings.batch_size, "layers": layers, "base": rest}
    artifacts.write_json(Path(settings.latency_table), known | measured)


if __name__ == "__main__":
    main(sys.argv[1:])
