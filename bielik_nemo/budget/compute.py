"""Tokens and FLOPs of a stage. Tokens are exact; FLOPs are an estimate, by these rules.

Of a token 6N + 12Lnds to train a model, 2N + 4Lnds for a forward pass, such as a teacher's (PaLM, arXiv 2204.02311
appendix B: n heads of d channels, s tokens, the causal mask not counted). N counts one embedding matrix, the one that
is multiplied. Validation and evaluation are left out: they are thousandths of it.
"""

from __future__ import annotations

from bielik_nemo.architecture import Architecture
from bielik_nemo.budget.memory import Work, paced, work
from bielik_nemo.config import Config

ASSUMED_MFU = 0.40
"""An assumption, not a measurement: a cautious share of the peak for dense models of this size on H100-class GPUs."""


def flops_per_token(teacher: Architecture | None, student: Architecture, seq_length: int) -> float:
    """FLOPs of training on one token: three passes of the student (backward is two), one of a teacher beside it."""
    return 3 * forward_flops(student, seq_length) + (forward_flops(teacher, seq_length) if teacher else 0)


def forward_flops(model: Architecture, seq_length: int) -> float:
    """FLOPs of one pass over one token."""
    attention = 4 * model.num_layers * model.num_attention_heads * model.head_dim * seq_length
    return 2 * model.num_parameters("once") + attention


def tokens(config: Config, stage: str) -> int | None:
    """What a stage trains on or reads, pads included; None: nobody knows before its data are there."""
    if stage == "score":
        return config.prune.calibration.samples * config.prune.calibration.seq_length
    if stage not in ("adapt", "pretrain", "search", "teacher", "distill", "distill_long", "sft"):
        return None
    found = paced(config, stage)
    own, steps = found.data, found.trainer.max_steps
    if stage == "search":
        steps = distilled_candidates(config) * config.prune.search.distill_steps
    return None if steps is None else steps * own.global_batch_size * own.seq_length


def flops(config: Config, stage: str, source: Architecture, target: Architecture) -> float | None:
    """FLOPs of a stage on one token; None: not a matter of FLOPs, such as copying weights, or sampling.

    Args:
        config: of the run.
        stage: its name.
        source: shape of the source model.
        target: shape of the model that alignment begins with.
    """
    found = work(config, stage, source, target)
    if found is None or stage in ("import_hf", "swap_tokenizer", "prune", "grpo", "export", "evaluate"):
        return None
    if stage == "search":
        read = tokens(config, stage)
        return search_flops(config, source, target) / read if read else None
    return _of(found)


def _of(found: Work) -> float:
    length = found.config.data.seq_length
    if not found.losses:
        return forward_flops(found.model, length)
    return flops_per_token(found.teacher, found.model, length)


def distilled_candidates(config: Config) -> int:
    """How many candidates the search distils."""
    settings = config.prune.search
    return settings.top_k if "search" in config.pipeline.stages and settings.distill_steps else 0


def search_flops(config: Config, source: Architecture, target: Architecture) -> float:
    """FLOPs of ranking candidates of about the target's size: three passes of each, and of the teacher one for all.

    For a loss that no cache can give, the teacher runs beside each candidate.
    """
    count, length = distilled_candidates(config), config.data.seq_length
    read = config.prune.search.distill_steps * config.data.global_batch_size * length
    teachers = min(count, 1) if config.cacheable else count
    return read * (3 * count * forward_flops(target, length) + teachers * forward_flops(source, length))
