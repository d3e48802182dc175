"""Speed of several models on the same loads, in turns, beside the least time that memory allows.

In every turn each model answers once, in the opposite order of the turn before, so that what slows the machine meets
all of them; the first turn of a point warms up and does not count. Prompts are drawn at random: time does not depend
on what they say.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median
from typing import Any

from bielik_nemo import stopping
from bielik_nemo.architecture import Architecture
from bielik_nemo.config_outcome import Benchmark, Point
from bielik_nemo.engine import bandwidth
from bielik_nemo.engine.model import DTYPES
from bielik_nemo.engine.speed_process import Process, Timing
from bielik_nemo.prune import latency
from bielik_nemo.prune.latency import GIB


def compare(
    models: Mapping[str, Path], settings: Benchmark, dtype: str, log: Path, advance: Callable[[str], None], seed: int
) -> dict[str, Any]:
    """What `benchmark/metrics.json` says, ratios to the first model among it.

    Args:
        models: Hugging Face directory of each, by name.
        settings: loads, repeats and engine.
        dtype: of weights and cache.
        log: file that takes what the libraries print.
        advance: called after each measurement with a word on it.
        seed: of the prompts.

    Raises:
        UserError: the process of a model has ended.
    """
    shapes = {name: Architecture.from_hf(directory) for name, directory in models.items()}
    words = min(shape.vocab_size for shape in shapes.values())
    loads = [(point.input_tokens + point.output_tokens, point.concurrency) for point in settings.points]
    measured: list[float] = []
    rows: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    taken: list[dict[str, list[Timing]]] = []
    with contextlib.ExitStack() as running:
        processes = [
            running.enter_context(Process(name, settings.engine, directory, dtype, loads, log))
            for name, directory in models.items()
        ]
        for number, point in enumerate(settings.points):
            measured += [] if settings.bandwidth_gb_s else [bandwidth.gb_s()]
            drawn = random.Random(f"{seed} {number}")
            prompts = [[drawn.randrange(words) for _ in range(point.input_tokens)] for _ in range(point.concurrency)]
            timings: dict[str, list[Timing]] = {name: [] for name in models}
            for turn in range(settings.repeats + 1):
                stopping.check()
                for process in processes[:: -1 if turn % 2 else 1]:
                    timing = process.measure(point, prompts)
                    timings[process.name] += [timing] if turn else []
                    advance(f"{process.name}: {_tokens(point) / timing.total:,.1f} tokens/s")
            taken.append(timings)
    limit = settings.bandwidth_gb_s or max(measured)
    for point, timings in zip(settings.points, taken, strict=True):
        of_point = [
            row(name, point, timings[name], shape, DTYPES[dtype].itemsize, limit) for name, shape in shapes.items()
        ]
        ratios += [ratio(each, of_point[0], timings) for each in of_point[1:]]
        rows += of_point
    return {
        "engine": settings.engine,
        "device": bandwidth.device_name(),
        "dtype": dtype,
        "bandwidth_gb_s": limit,
        "points": rows,
        "ratios": ratios,
    }


def row(
    name: str, point: Point, timings: Sequence[Timing], shape: Architecture, width: int, bandwidth_gb_s: float
) -> dict[str, Any]:
    """One model under one load: medians of what was measured, and the limits of decoding.

    `ttft_ms` is the time to the first token, `tpot_ms` from one token to the next after it; both are those of all
    answers side by side, and `tokens_per_second` counts all of them, from the request on. `bytes_per_token` is what a
    decode step moves by the number of answers.
    """
    moved = latency.decode_bytes(shape, width, **asdict(point))
    least = latency.milliseconds(moved, bandwidth_gb_s)
    return {
        "model": name,
        **asdict(point),
        "ttft_ms": 1000 * median(timing.first for timing in timings),
        "tpot_ms": 1000 * median(_step(point, timing) for timing in timings),
        "tokens_per_second": median(_tokens(point) / timing.total for timing in timings),
        "peak_memory_gib": max(timing.memory for timing in timings) / GIB,
        "limit_tpot_ms": least,
        "limit_tokens_per_second": 1000 * point.concurrency / least,
        "bytes_per_token": moved / point.concurrency,
    }


def ratio(of: dict[str, Any], to: dict[str, Any], timings: Mapping[str, Sequence[Timing]]) -> dict[str, Any]:
    """How many times as fast one row's model is as another's: medians over the turns, each of which had both.

    `speedup` is that of tokens per second, `decode_speedup` that of the time between two tokens, of which
    `limit_speedup` is the analytic value.
    """
    point = Point(*(of[field.name] for field in fields(Point)))
    pairs = list(zip(timings[to["model"]], timings[of["model"]], strict=True))
    return {
        "model": of["model"],
        **asdict(point),
        "speedup": median(other.total / own.total for other, own in pairs),
        "decode_speedup": median(_step(point, other) / _step(point, own) for other, own in pairs),
        "limit_speedup": to["limit_tpot_ms"] / of["limit_tpot_ms"],
    }


def _tokens(point: Point) -> int:
    return point.output_tokens * point.concurrency


def _step(point: Point, timing: Timing) -> float:
    """Seconds from one token to the next."""
    return (timing.total - timing.first) / (point.output_tokens - 1)
