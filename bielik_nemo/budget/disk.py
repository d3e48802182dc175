"""Disk that a run takes, by stage.

Checkpoints that it keeps: of full ones trainer.keep_last and the one that is being written; of a cached teacher the ids
that differ among those drawn for a token, more of them where the teacher is less certain. Snapshots count where the
steps are known. Merging first writes the pipeline's own models as float32.
"""

from __future__ import annotations

from bielik_nemo.architecture import Architecture
from bielik_nemo.budget.compute import distilled_candidates
from bielik_nemo.config import Config

DISTINCT_DRAWS = 0.73
"""Of n ids drawn for a token about n ** 0.73 differ: measured on SmolLM2 and English prose, n = 6 to 50."""


def disk_per_stage(config: Config, source: Architecture, target: Architecture) -> dict[str, float]:
    """Bytes that each stage of the pipeline writes, where they are worth counting."""
    weights = 2 if config.model.dtype == "bfloat16" else 4
    mixed = config.trainer.precision == "bf16-mixed"
    full = 14 if mixed else 12  # weights and what the optimizer keeps, of each parameter
    steps, tokens_per_step = config.trainer.max_steps, config.data.global_batch_size * config.data.seq_length
    kept = tokens_per_step * teacher_bytes_per_token(config, source)
    candidates = distilled_candidates(config)
    shared = config.prune.search.distill_steps * kept if candidates and config.cacheable else 0
    every = config.trainer.snapshot_every
    snapshots = {
        name: (getattr(config, name).max_steps or 0) // every if every else 0 for name in ("sft", "dpo", "grpo")
    }
    sizes = {
        "import_hf": source.num_parameters() * weights,
        "swap_tokenizer": 2 * source.num_parameters() * weights,
        "adapt": source.num_parameters() * ((config.trainer.keep_last + 1) * full + weights),
        "pretrain": source.num_parameters() * ((config.trainer.keep_last + 1) * full + weights),
        "teacher": steps * kept,
        # Until all are ranked, the cut and the distilled weights of each candidate stay, and what the teacher left.
        "search": 2 * candidates * target.num_parameters() * weights + shared,
        "prune": target.num_parameters() * weights,
        "distill": target.num_parameters() * ((config.trainer.keep_last + 1) * full + weights),
        "distill_long": target.num_parameters() * ((config.trainer.keep_last + 1) * full + weights),
        "sft": target.num_parameters() * ((config.trainer.keep_last + 1) * full + (1 + snapshots["sft"]) * weights),
        "dpo": target.num_parameters() * ((config.trainer.keep_last + 1) * full + (1 + snapshots["dpo"]) * weights),
        "grpo": target.num_parameters() * ((config.trainer.keep_last + 1) * full + (1 + snapshots["grpo"]) * weights),
        "merge": target.num_parameters() * (weights + 4 * max(config.merge.snapshots, 1)),
        "export": target.num_parameters() * weights,
        "quantize": target.num_parameters() * sum(2 if name == "gguf:f16" else 1 for name in config.quantize.formats),
    }
    return {stage: size for stage, size in sizes.items() if size and stage in config.pipeline.stages}


def teacher_bytes_per_token(config: Config, source: Architecture) -> float:
    """What the stage `teacher` keeps of a token (see engine/teacher_cache.py)."""
    width, n = 2 if source.vocab_size <= 2**16 else 3, config.teacher.samples_per_token
    if config.teacher.kind == "top_k":
        return config.teacher.top_k * (width + 2)
    return width * n**DISTINCT_DRAWS + n / 8 + 2
