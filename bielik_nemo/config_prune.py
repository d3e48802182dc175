"""The typed configuration's section `prune`, and the sources of text that it shares with `data`; see config.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional


@dataclass
class TextSource:
    """One source of documents."""

    path: str = ""  # .txt, .jsonl, .parquet, a directory of them, or builtin:package-docs
    text_key: str = "text"
    language: str = ""  # such as pl; held-out losses are told by language
    weight: Optional[float] = None  # share of the training samples, or of its language's; None: by size


@dataclass
class BlendSource(TextSource):
    """One source of a blend."""

    weight: float = 1.0  # its share of the samples is weight / sum of weights


@dataclass
class Target:
    """Sizes after pruning; None keeps the source's, or leaves the axis to the search."""

    num_layers: Optional[int] = None
    hidden_size: Optional[int] = None
    ffn_hidden_size: Optional[int] = None
    num_attention_heads: Optional[int] = None
    num_query_groups: Optional[int] = None  # only the source's own: Model Optimizer cuts none since 0.41


@dataclass
class Calibration:
    """The text on which importance is measured and compensation is fitted."""

    sources: list[BlendSource] = field(default_factory=list)  # none: the training text, in its order
    samples: int = 1024  # arXiv 2407.14679 section 2.2, and Model Optimizer's default
    seq_length: int = 4096  # Model Optimizer's default
    batch_size: int = 1


@dataclass
class Importance:
    """How units and layers are scored."""

    batch_aggregation: str = "l2"  # mean, l2, var over samples; l2 and mean are Model Optimizer's (arXiv 2407.14679)
    seq_aggregation: str = "mean"  # mean (of absolute values), l2, var over the tokens of a sample
    layers: str = "block_influence"  # block_influence, loss_increase, contiguous_block
    layer_samples: int = 64  # calibration samples on which the loss without a layer or a block is measured
    block_sizes: list[int] = field(default_factory=list)  # lengths of the blocks that contiguous_block measures
    scores: str = ""  # scores.safetensors of another run of the same model, calibration and settings; empty: measure


@dataclass
class Axis:
    """What the search may choose for one size; None: Model Optimizer's limit (0.8 of the layers, 0.6 of a width)."""

    min: Optional[int] = None
    max: Optional[int] = None  # None: the source's
    divisor: int = 1


@dataclass
class Search:
    """Budgets for the search for a shape, and the short distillation that ranks the best; None: no such budget."""

    num_layers: Axis = field(default_factory=lambda: Axis(divisor=2))
    hidden_size: Axis = field(default_factory=lambda: Axis(divisor=256))
    ffn_hidden_size: Axis = field(default_factory=lambda: Axis(divisor=512))
    num_attention_heads: Axis = field(default_factory=Axis)  # always in steps of the query groups
    max_parameters: Optional[float] = None
    embeddings: str = "all"  # all, once: how parameters are counted; the Bielik report counts one matrix
    max_memory_gib: Optional[float] = None  # weights and KV cache at `context` and `batch_size`
    max_latency_ms: Optional[float] = None  # of decoding one token at `context` and `batch_size`
    context: int = 4096
    batch_size: int = 1
    bits_per_weight: float = 16.0
    memory_bandwidth_gb_s: float = 0.0  # of the device that decodes; for the analytic latency
    latency_table: str = ""  # measured latencies (JSON); empty: analytic, bytes over bandwidth
    tolerance: float = 0.05  # a candidate this much below every budget is left out (arXiv 2407.14679: within 5 %)
    objective: str = "parameters"  # parameters (Model Optimizer's: nearest below the budget), importance
    top_k: int = 6  # how many are distilled; Model Optimizer looks at 10
    distill_steps: int = 0  # of the short distillation of each (arXiv 2407.14679: 400); 0: take the first candidate


@dataclass
class Compensation:
    """Refitting of what stays, so that each layer's output on the calibration text changes least."""

    attention: bool = False  # attention output projection, least squares
    ffn: bool = False  # FFN down projection, least squares
    blocks: bool = False  # dropped blocks as a linear map in the layer before them
    rotation: bool = False  # hidden stream turned to its principal axes before it is cut
    samples: int = 64  # the first of the calibration set, or all where it has fewer
    ridge: float = 0.1  # damping, relative to the mean of the Gram matrix's diagonal: our choice; see benchmarks/


@dataclass
class Prune:
    """Minitron scoring, search and pruning (Model Optimizer)."""

    target: Target = field(default_factory=Target)
    student: str = ""  # a Hugging Face directory: a model cut elsewhere, taken as it is; nothing else is pruned
    drop_layers: Optional[list[int]] = None  # by hand, 0-based; None: by importance
    keep_first_layers: int = 0  # never dropped
    keep_last_layers: int = 0
    calibration: Calibration = field(default_factory=Calibration)
    importance: Importance = field(default_factory=Importance)
    search: Search = field(default_factory=Search)
    compensation: Compensation = field(default_factory=Compensation)
    streaming: bool = False  # cut the Hugging Face files tensor by tensor, in bounded memory
