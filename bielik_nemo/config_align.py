"""Settings of alignment: how conversations become tokens, SFT, preference optimisation, merging.

See config.py, whose rules these follow. Defaults of SFT: Bielik 11B v3 (arXiv 2601.11579). Of DPO-P: rates of the same
report, beta and penalty of Bielik v3 Small (arXiv 2505.02550); the former does not give these two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional


@dataclass
class ChatSource:
    """Conversations: a .jsonl file, a directory of them, or a built-in set."""

    path: str = ""
    format: str = "auto"  # messages, alpaca, sharegpt, prompt_completion; auto: what the keys of each line say
    language: str = ""
    weight: float = 1.0  # of every trained token, in hundredths; a line's own `weight` goes before it


@dataclass
class Chat:
    """How conversations and preference pairs become tokens."""

    template: str = "chatml"  # chatml: OpenChatML as Bielik writes it; tokenizer: the tokenizer's own
    max_bad_share: float = 0.001  # of the lines of a source; more that cannot be used stop the run
    held_out_fraction: float = 0.05  # of conversations, of prompts with preferences and of tasks, by content hash
    held_out_tokens: int = 65536  # trained ones, that measure SFT
    held_out_pairs: int = 512  # that measure preference optimisation
    held_out_tasks: int = 256  # that measure reinforcement learning


@dataclass
class LoRA:
    """Low-rank adapters (arXiv 2106.09685) by NeMo's PEFT: the model stays frozen, and gets them added in the end."""

    rank: int = 0  # 0: there are none, all weights are trained
    alpha: int = 32
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"])


@dataclass
class SFT:
    """Training on the answers of conversations; what is not here is optim's."""

    sources: list[ChatSource] = field(default_factory=list)
    epochs: float = 3.0
    max_steps: Optional[int] = None  # null: as many as the epochs take
    seq_length: int = 32768  # what is longer is cut at its end
    packing: bool = True  # many conversations in a sequence, none of which sees another
    global_batch_size: int = 64  # sequences
    micro_batch_size: int = 1
    recompute: str = "full"  # as trainer.recompute: with sequences of 32768 little fits beside what backward needs
    schedule: str = "constant"
    lr: float = 5e-6
    min_lr: float = 0.0
    warmup_steps: int = 100
    decay_steps: int = 0
    weight_decay: float = 0.05
    reference_tokens: Optional[int] = None  # adaptive rate: lr * sqrt(trained tokens of the batch / these)
    normalization: str = "tokens"  # of a batch's weighted loss: its trained tokens, or the sum of their weights
    forward_kl: float = 0.0  # weight of KL(source || model) on the same tokens, beside cross-entropy's 1
    lora: LoRA = field(default_factory=LoRA)


@dataclass
class PreferenceSource:
    """Prompts with a chosen and a rejected answer: a .jsonl file, a directory of them, or a built-in set."""

    path: str = ""
    language: str = ""


@dataclass
class DPO:
    """Preference optimisation against the model it starts from; what is not here is optim's."""

    sources: list[PreferenceSource] = field(default_factory=list)
    epochs: float = 3.0
    max_steps: Optional[int] = None  # null: as many as the epochs take
    seq_length: int = 32768  # that holds one pair at least; a pair that is longer has its prompt and answers cut
    global_batch_size: int = 64  # pairs
    micro_batch_size: int = 1  # sequences, each of as many pairs as fit
    recompute: str = "full"
    schedule: str = "constant"
    lr: float = 5e-7
    min_lr: float = 0.0
    warmup_steps: int = 50
    decay_steps: int = 0
    weight_decay: float = 0.05  # our choice: SFT's; the reports give none
    loss: str = "bielik"  # where DPO-P's penalty stands: bielik, outside beta; smaug, inside; plain: nowhere (DPO)
    beta: float = 0.1
    beta_rejected: Optional[float] = None  # of the rejected answer's log-ratio; null: beta
    penalty: float = 2.5  # lambda
    label_smoothing: float = 0.0
    length_normalized: bool = False  # log-probabilities per token of an answer, not summed
    gate_tolerance: float = 0.02  # nats: how far the first loss may be from ln 2, and a log-ratio per token from 0


@dataclass
class MergeModel:
    """A model to be merged with the pipeline's own."""

    path: str = ""  # a Hugging Face directory or a Megatron checkpoint of the same shape
    weight: float = 1.0


@dataclass
class Merge:
    """A weighted mean of models of one shape; weights are divided by their sum."""

    method: str = "linear"  # linear, slerp (two models: along the arc between them, tensor by tensor)
    weight: float = 1.0  # of the pipeline's own model
    models: list[MergeModel] = field(default_factory=list)
    snapshots: int = 0  # so many of the newest snapshots of the stage before, with equal weights, for its last model
