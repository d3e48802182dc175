"""Settings of what ends a pipeline: export, how its models are measured, and what is published.

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
class Harness:
    """Tasks of lm-evaluation-harness, and where their documents are (see data/harness.py)."""

    tasks: list[str] = field(default_factory=list)  # its names of tasks, groups and tags, or those in harness_tasks/
    shots: Optional[int] = None  # examples before each document; None: as each task has it
    limit: Optional[int] = None  # documents of each task, the first ones; None: all
    chat_template: bool = False  # ask in the tokenizer's chat template, examples as turns
    data_dir: str = ""  # <dataset>/<split>.jsonl or .parquet
    include_path: str = ""  # directory with YAML of one's own tasks
    allow_code: bool = False  # run what that YAML names as `!function` or `class`
    download: bool = False  # from the Hugging Face hub, what is not in data_dir
    confidence: float = 0.95  # of all intervals
    resamples: int = 1000  # of the documents, for intervals of metrics that are no means (F1, BLEU)


@dataclass
class Evaluate:
    """How the models of a pipeline, and others, are measured side by side."""

    models: list[Compared] = field(default_factory=list)
    batch_size: int = 4
    agreement_tokens: int = 16384  # held-out ones, on which each model is compared with the source word by word
    prompts: list[str] = field(default_factory=list)
    sample_tokens: int = 32
    harness: Harness = field(default_factory=Harness)


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


@dataclass
class MaxChange:
    """By how much a format may change the loss, relative to the export's.

    f16 only rounds. The others are our choice: on its own benchmarks the Bielik-Minitron report lost 0.6 % with Q8_0,
    0.3 % with Q6_K, 0.9 % with Q4_K_M, 1.5 % with FP8 and 3.7 % with NVFP4; a small model loses more.
    """

    f16: float = 0.005
    q8_0: float = 0.01
    q6_k: float = 0.02
    q4_k_m: float = 0.05
    fp8: float = 0.05
    nvfp4: float = 0.15


@dataclass
class Quantize:
    """The export in formats that take less room, each measured in the runtime that it is made for."""

    # gguf:f16, gguf:q8_0, gguf:q6_k, gguf:q4_k_m, fp8, nvfp4
    formats: list[str] = field(default_factory=lambda: ["gguf:f16", "gguf:q8_0", "gguf:q6_k", "gguf:q4_k_m"])
    importance: bool = True  # GGUF: errors count by what the calibration text multiplies them with (importance matrix)
    calibration_samples: int = 64  # the first of the calibration set of `score`, or else of the training text
    max_change: MaxChange = field(default_factory=MaxChange)
    fallback: bool = False  # GGUF: rows that do not fill the blocks of a k-quant are written in another format
    keep_layers: int = 0  # fp8, nvfp4: so many first and last layers stay in model.dtype
    require_runtime: bool = False  # refuse fp8 and nvfp4 where vLLM cannot load them, instead of simulating them


@dataclass
class Release:
    """What is published: the export and its other formats, with model cards that tell how they were made."""

    name: str = "${..run.name}"  # of the model
    licence: str = ""  # by SPDX, such as Apache-2.0 or LicenseRef-mine; must be given where there is a release
    base_model: str = ""  # what it was made of, by its name on the Hugging Face Hub; "": the last part of model.source
