"""Settings of what ends a pipeline: export, and how its models are measured.

See config.py, whose rules these follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional


@dataclass
class Export:
    """The Hugging Face directory that comes out."""

    max_shard_gib: float = 4.0
    parity_tokens: int = 512
    parity_tolerance: float = 1e-4  # largest |logit difference| against plain transformers, in float32


MODELS = ("source", "pruned", "distilled", "sft", "dpo", "grpo", "merged")
"""What the models that a pipeline makes are called, in the order in which they come to be."""


@dataclass
class Compared:
    """A model that is measured beside those of the pipeline."""

    name: str = ""  # what it is called in every table
    path: str = ""  # a Hugging Face directory, or the directory of a stage of another run, such as runs/other/sft


@dataclass
class Evaluate:
    """How the models of a pipeline, and others, are measured side by side."""

    models: list[Compared] = field(default_factory=list)
    batch_size: int = 4
    agreement_tokens: int = 16384  # held-out ones, on which each model is compared with the source word by word
    prompts: list[str] = field(default_factory=list)
    sample_tokens: int = 32


@dataclass
class Point:
    """One load under which speed is measured: so many prompts of one length, answered side by side."""

    input_tokens: int = 512
    output_tokens: int = 128
    concurrency: int = 1


@dataclass
class Benchmark:
    """How fast the source and what was made of it answer, in `model.dtype`, each in a process of its own."""

    engine: str = "transformers"  # transformers, vllm
    points: list[Point] = field(default_factory=lambda: [Point()])
    repeats: int = 5  # of each point by each model, in turns; medians count
    bandwidth_gb_s: Optional[float] = None  # of the memory, for the analytic limit; None: measured
