"""Settings of tokenizers: comparing them, and giving a model another one.

See config.py, whose rules these follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Tokenizers:
    """Which tokenizers are held against the model's own, and on how much text."""

    compared: dict[str, str] = field(default_factory=dict)  # name: a directory with a tokenizer, or builtin:smollm2
    documents: int = 2000  # the first ones of each of data.sources
