"""Settings of what ends a pipeline: export, and how its models are measured.

See config.py, whose rules these follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Export:
    """The Hugging Face directory that comes out."""

    max_shard_gib: float = 4.0
    parity_tokens: int = 512
    parity_tolerance: float = 1e-4  # largest |logit difference| against plain transformers, in float32


@dataclass
class Evaluate:
    """How the models of a pipeline, and others, are measured side by side."""

    batch_size: int = 4
    prompts: list[str] = field(default_factory=list)
    sample_tokens: int = 32
