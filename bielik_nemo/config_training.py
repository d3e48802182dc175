"""Settings of training: its length and rates, continued pre-training, distillation, what a teacher leaves for it.

See config.py, whose rules these follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional


@dataclass
class Trainer:
    """Length, precision and rhythm of training."""

    max_steps: int = 1000
    precision: str = "32"  # 32, bf16-mixed
    recompute: str = "none"  # activations in backward: none, selective (core attention), full (every layer)
    log_every: int = 10
    validate_every: int = 100
    checkpoint_every: int = 100
    max_loss_spike: Optional[float] = 10.0  # a loss so many times the recent median stops the run; null: none does
    max_hours: Optional[float] = None  # after which the command saves and stops, to go on when it is started again
    async_checkpoints: Optional[bool] = None  # written while training goes on; null: on GPUs
    keep_best: bool = False  # the result is the student with the lowest held-out loss that was measured, not the last
    snapshot_every: Optional[int] = None  # steps between copies of the weights that sft and dpo leave, to be merged
    keep_last: int = 2  # checkpoints to go on from; the second is there should the newest be damaged


@dataclass
class Optim:
    """AdamW and its learning rate after a linear warm-up."""

    schedule: str = "cosine"  # cosine, wsd (constant, then linear over decay_steps; arXiv 2404.06395), constant
    lr: float = 1e-4
    min_lr: float = 1e-5  # at the end of cosine and wsd
    warmup_steps: int = 50
    decay_steps: int = 0  # the last ones of wsd
    reference_tokens: Optional[int] = None  # the rates are for batches of so many tokens: times sqrt(tokens / these)
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip_grad: float = 1.0


@dataclass
class Pretrain:
    """Continued pre-training of the source model before it is scored, cut and teaches; the rest is optim's.

    Defaults: the correction of a teacher in arXiv 2408.11796 (a fifth of the peak rate, 120 steps of warm-up, the same
    minimum).
    """

    max_steps: int = 1000
    schedule: str = "cosine"
    lr: float = 2e-5
    min_lr: float = 1e-5
    warmup_steps: int = 120
    decay_steps: int = 0
    language_weights: dict[str, float] = field(default_factory=dict)  # empty: data.language_weights


@dataclass
class Teacher:
    """What the stage `teacher` keeps of the source model's predictions, for distillation without it in memory."""

    kind: str = "sampled"  # ids drawn from its softmax: forward KL without bias; top_k: its most likely ids
    # 23 bytes a token on English prose, where 9 of the 20 evenly spaced draws differ and leave as much noise in the
    # gradient as 42 independent ones (arXiv 2503.16870: 50). Noise falls as 1 / n ** 1.25, size grows as n ** 0.73.
    samples_per_token: int = 20
    top_k: int = 12  # 4 bytes each; only this kind serves a distill.temperature other than 1


@dataclass
class DistillWeights:
    """What the distillation loss is made of: literal weights of a sum, which nothing rescales."""

    forward_kl: float = 1.0  # KL(teacher || student)
    reverse_kl: float = 0.0  # KL(student || teacher)
    jensen_shannon: float = 0.0  # between the two
    cross_entropy: float = 0.0  # on the words of the text; no temperature
    hidden_state: float = 0.0  # cosine distance of the outputs of `distill.hidden_layers`, added up over the pairs


LIVE_ONLY = ("reverse_kl", "jensen_shannon", "hidden_state")
"""Parts of the loss that need more of the teacher than a cache keeps, and so the teacher beside the student."""


@dataclass
class Distill:
    """Logit distillation."""

    weights: DistillWeights = field(default_factory=DistillWeights)
    temperature: float = 1.0  # best of 0.1, 0.5, 1, 3 in arXiv 2407.14679 A.5; the Bielik report gives no value
    jensen_shannon_beta: float = 0.5  # weight of the teacher in the mixture (arXiv 2306.13649); 0.5 is symmetric
    hidden_layers: list[list[int]] = field(default_factory=list)  # [student layer, teacher layer], numbered from 0
    gate_max_loss: float = 4.0  # nats per token: a teacher worse than this on held-out text stops the run
    gate_tolerance: float = 0.02  # relative: the loaded teacher against the loss measured by its own Hugging Face model


@dataclass
class DistillLong:
    """A second phase of distillation at a longer context; losses, gate and the rest are as in the first.

    Rates: Model Optimizer's example of such a phase. Tokens in a batch: as many as 512 sequences of 4096 have.
    """

    seq_length: int = 32768
    rotary_base: Optional[float] = None  # of the student from here on; None: unchanged
    max_steps: int = 1000
    schedule: str = "cosine"
    lr: float = 2e-5
    min_lr: float = 1e-5
    warmup_steps: int = 50
    decay_steps: int = 0
    global_batch_size: int = 64
    micro_batch_size: int = 1
