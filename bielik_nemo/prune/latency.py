"""What decoding costs: memory of weights and KV cache, and milliseconds per token, analytic or measured.

Analytic: at small batches a decoder is bound by memory, so that a step takes as long as reading what it needs once:
every weight except the input embedding, of which it reads one row, and the KV cache of all sequences. Multiplications,
kernel launches and communication are left out, so this is a lower bound. A search leaves out what is small beside that
and the same for all its shapes: rows of embeddings, and what is written.

Measured: a JSON file, as written by benchmarks/decode_latency.py. Nothing is interpolated: a shape that was not
measured has no latency.

    {"context": 4096, "batch_size": 1,
     "layers": [{"hidden_size": 4096, "ffn_hidden_size": 14336, "num_attention_heads": 32, "milliseconds": 0.11}, ...],
     "base": [{"hidden_size": 4096, "milliseconds": 0.07}, ...]}

`layers` is one decoder layer, `base` what a model has once: embedding, last norm, output matrix. A model takes
base + num_layers * layer. Other keys, such as the device's name, are for the reader.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from bielik_nemo.architecture import Architecture
from bielik_nemo.config_prune import Search
from bielik_nemo.errors import ConfigError

GIB = 2**30
KEY = "prune.search.latency_table"

Widths = tuple[int, int, int]
"""Hidden size, FFN hidden size and number of attention heads."""


def memory_gib(parameters: int, cache: int, settings: Search) -> float:
    """GiB of all weights, at `bits_per_weight`, and of a KV cache of `cache` bytes."""
    return (parameters * settings.bits_per_weight / 8 + cache) / GIB


def analytic_ms(parameters_once: int, cache: int, settings: Search) -> float | None:
    """Milliseconds to read weights (one embedding matrix) and `cache` bytes; None where the bandwidth is not known."""
    if not settings.memory_bandwidth_gb_s:
        return None
    return milliseconds(parameters_once * settings.bits_per_weight / 8 + cache, settings.memory_bandwidth_gb_s)


def milliseconds(moved: float, bandwidth_gb_s: float) -> float:
    """That it takes to move so many bytes, at 1e9 bytes a second for each GB/s."""
    return moved / (bandwidth_gb_s * 1e6)


def decode_bytes(
    shape: Architecture, bytes_per_weight: int, input_tokens: int, output_tokens: int, concurrency: int
) -> float:
    """Bytes that a decode step moves, on the mean of the steps after the first token, which comes of the prompt.

    Weights are read once for all sequences; each reads its row of the embedding and the keys and values of all tokens
    that it sees, its newest among them, and writes those of the newest.

    Args:
        shape: of the model.
        bytes_per_weight: of weights, and of keys and values.
        input_tokens: of each prompt.
        output_tokens: of each answer, 2 or more.
        concurrency: sequences side by side.
    """
    window = shape.sliding_window or math.inf
    seen = fmean(min(window, input_tokens + step) for step in range(1, output_tokens))
    cache = shape.kv_cache_bytes_per_token(bytes_per_weight) * (seen + 1)
    row = shape.hidden_size * bytes_per_weight
    return shape.num_parameters("once") * bytes_per_weight + concurrency * (row + cache)


@dataclass(frozen=True)
class Table:
    """Measured milliseconds: of one layer by its widths, and of the rest of the model by its hidden size."""

    layers: dict[Widths, float]
    base: dict[int, float]

    def milliseconds(self, num_layers: int, widths: Widths) -> float | None:
        """Of one decode step; None when this shape was not measured."""
        if widths not in self.layers or widths[0] not in self.base:
            return None
        return self.base[widths[0]] + num_layers * self.layers[widths]


def load(settings: Search) -> Table | None:
    """The table that `latency_table` names; None when it names none.

    Raises:
        ConfigError: missing, damaged, or measured at another context or batch size.
    """
    if not settings.latency_table:
        return None
    path = Path(settings.latency_table)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sizes = ("hidden_size", "ffn_hidden_size", "num_attention_heads")
        layers = {tuple(_count(row[name]) for name in sizes): _time(row) for row in content["layers"]}
        base = {_count(row["hidden_size"]): _time(row) for row in content["base"]}
        measured = {name: content[name] for name in ("context", "batch_size")}
    except OSError as error:
        raise ConfigError(f"{KEY}: {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{KEY}: {path}: not a table of latencies: {type(error).__name__}: {error}") from None
    for name, value in measured.items():
        if value != getattr(settings, name):
            wanted = f"{value}, at which {path} was measured"
            raise ConfigError(f"prune.search.{name}: found {getattr(settings, name)}, allowed: {wanted}")
    return Table(layers, base)


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"found {value!r}, allowed: a positive integer")
    return value


def _time(row: dict[str, Any]) -> float:
    value = row["milliseconds"]
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"milliseconds: found {value!r}, allowed: zero or a positive number")
    return float(value)
