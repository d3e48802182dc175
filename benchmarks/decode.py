"""Decoding at the shapes of Bielik-11B and Bielik-Minitron-7B scaled to fit, beside what memory allows.

    OMP_NUM_THREADS=1 python benchmarks/decode.py runs/decode                    # a quarter of the widths: 5 GiB
    OMP_NUM_THREADS=1 python benchmarks/decode.py runs/decode --shrink 8         # an eighth: 2 GiB

Hidden size, FFN, heads, query groups and vocabulary are divided alike, so that their ratios and the share of the
embeddings stay; layers and head_dim are the real ones. Weights are random. Measured as the stage `benchmark` does, by
transformers, the models in turns. Prints Markdown.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bielik_nemo import ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import compose
from bielik_nemo.config_outcome import Benchmark, Point
from bielik_nemo.engine import speed
from bielik_nemo.engine.model import DTYPES
from bielik_nemo.prune import latency
from bielik_nemo.validation.shapes import source_architecture, target_architecture

DIVIDED = ("hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "vocab_size")


def shapes() -> dict[str, Architecture]:
    """Teacher and student of the recipe."""
    config = compose("bielik_minitron_7b")
    source = source_architecture(config)
    return {"teacher": source, "student": target_architecture(config, source)}


def scaled(shape: Architecture, by: int) -> Architecture:
    """All widths divided."""
    return replace(shape, **{name: getattr(shape, name) // by for name in DIVIDED})


def written(shape: Architecture, directory: Path, dtype: str) -> Path:
    """A Hugging Face directory of random weights, made once."""
    if not (directory / "config.json").exists():
        settings = shape.to_hf()
        hf = AutoConfig.for_model(settings.pop("model_type"), **settings)
        AutoModelForCausalLM.from_config(hf, dtype=DTYPES[dtype]).save_pretrained(directory)
    return directory


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="where the models are put")
    parser.add_argument("--shrink", type=int, choices=[1, 2, 4, 8], default=4)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1])
    parser.add_argument("--input-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    options = parser.parse_args()
    points = [Point(options.input_tokens, options.output_tokens, count) for count in options.concurrency]
    full = shapes()
    small = {name: scaled(shape, options.shrink) for name, shape in full.items()}
    models = {
        name: written(shape, options.directory / f"{name}-{options.shrink}-{options.dtype}", options.dtype)
        for name, shape in small.items()
    }
    settings = Benchmark(points=points, repeats=options.repeats)
    with ui.progress("decoding", 2 * len(points) * (options.repeats + 1)) as advance:
        found = speed.compare(models, settings, options.dtype, options.directory / "log.txt", advance, seed=0)

    sizes = ", ".join(f"{name} {shape.num_parameters() / 1e6:,.0f}M" for name, shape in small.items())
    print(f"{found['device']}, {options.dtype}, {found['bandwidth_gb_s']:.1f} GB/s; {sizes}\n")
    heads = [
        "in + out, at once",
        "teacher, ms",
        "limit",
        "student, ms",
        "limit",
        "ratio",
        "analytic",
        "off",
        "full size",
    ]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for point, ratio in zip(points, found["ratios"], strict=True):
        rows = [row for row in found["points"] if row["concurrency"] == point.concurrency]
        times = [f"{row[key]:.1f}" for row in rows for key in ("tpot_ms", "limit_tpot_ms")]
        measured, analytic = ratio["decode_speedup"], ratio["limit_speedup"]
        moved = [latency.decode_bytes(shape, torch.bfloat16.itemsize, **asdict(point)) for shape in full.values()]
        cells = [f"{point.input_tokens} + {point.output_tokens}, {point.concurrency}", *times, f"{measured:.3f}"]
        cells += [f"{analytic:.3f}", f"{measured / analytic - 1:+.1%}", f"{moved[0] / moved[1]:.3f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
