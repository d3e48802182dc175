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


@dataclass
class SwapTokenizer:
    """Another tokenizer for the model, whose embeddings are begun by FOCUS (arXiv 2305.14481).

    Defaults of the auxiliary embeddings are those of the authors' program.
    """

    tokenizer: str = ""  # a directory with the new one
    tokens: int = 50_000_000  # of the training text, in the new tokenizer, that auxiliary embeddings are made of
    dimensions: int = 100  # of these
    epochs: int = 3
    min_count: int = 10  # a token that is seen less often has none


@dataclass
class Adapt:
    """Training of what is nearest to the words, before the whole model is trained; the rest is optim's.

    Layers and order are those of Bielik-PL-Minitron (arXiv 2604.10799), which states no rates: as in `pretrain`.
    """

    boundary_layers: int = 2  # the lowest and the highest ones, trained with both embedding matrices
    max_steps: int = 1000
    schedule: str = "cosine"
    lr: float = 1e-4  # our choice: rows that were made anew have further to go than the layers of `pretrain`
    min_lr: float = 2e-5  # where `pretrain` begins
    warmup_steps: int = 120
    decay_steps: int = 0
    language_weights: dict[str, float] = field(default_factory=dict)  # empty: data.language_weights
