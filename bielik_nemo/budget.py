"""What a distillation costs, before anything is queued: parameters, tokens, FLOPs, GPU-hours, memory per device, disk.

Parameter and token counts are exact. Everything else is an estimate, by these rules:

- FLOPs per token: 6N + 12Lnds to train the student, 2N + 4Lnds for the teacher's forward pass (PaLM, arXiv 2204.02311
  appendix B: n heads of d channels, s tokens, the causal mask not counted). N counts one embedding matrix, the one that
  is multiplied. Scoring, validation and evaluation are left out: they are thousandths of it.
- GPU-hours: those FLOPs at `ASSUMED_MFU` of the GPU's peak.
- Memory: Megatron's mixed precision keeps bf16 weights, fp32 gradients, and an fp32 master copy with two Adam moments,
  which the distributed optimizer (on GPUs) divides by the data-parallel size. Logits: the student's, the teacher's and
  the loss's gradient. Nothing of a teacher where the stage `teacher` has run it before. Activations: what backward
  needs of a layer, counted as in arXiv 2205.05198 section 4 for a gated FFN, grouped queries and, as on GPUs, an
  attention that keeps no s x s matrix: 4h (norms, residual) and (2nd + 2gd + 3f) / tp elements per token, no
  recomputation. Buffers, fragmentation and the CUDA context come on top.
- Disk: checkpoints that a run keeps: of full ones trainer.keep_last and the one that is being written; of a cached
  teacher the ids that differ among those drawn for a token, more of them where the teacher is less certain. Snapshots
  count where the steps are known. Merging first writes the pipeline's own models as float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.validation.shapes import target_architecture

ASSUMED_MFU = 0.40
"""An assumption, not a measurement: a cautious share of the peak for dense models of this size on H100-class GPUs."""
DISTINCT_DRAWS = 0.73
"""Of n ids drawn for a token about n ** 0.73 differ: measured on SmolLM2 and English prose, n = 6 to 50."""
GIB = 2**30


@dataclass(frozen=True)
class Budget:
    """Costs of one run; `memory` (parts of one device, the fullest one) and `disk` (stages) in bytes."""

    source: Architecture
    target: Architecture
    tokens: int  # of distillation
    pretrained: int  # of continued pre-training
    longer: int  # of the second phase of distillation
    tuned: int  # of SFT, positions of its sequences; 0: they depend on its conversations
    candidates: int  # that a search distils
    flops: float
    ranking: float  # what these take of the FLOPs, 0..1
    gpu_hours: float | None  # None: the peak of the GPU is not known
    memory: dict[str, float]
    disk: dict[str, float]


def estimate(config: Config, source: Architecture) -> Budget:
    """Budget of a run. Raises `ConfigError` when the target does not fit the source."""
    stages, length = config.pipeline.stages, config.data.seq_length
    target = target_architecture(config, source) if "prune" in stages else source
    pretrains = "pretrain" in stages
    distils = "distill" in stages or {"pretrain", "sft", "dpo", "grpo"}.isdisjoint(stages)
    tokens = distils * config.trainer.max_steps * config.data.global_batch_size * length
    pretrained = pretrains * config.pretrain.max_steps * config.data.global_batch_size * length
    second = _phase(config, "distill_long")
    longer = second.trainer.max_steps * second.data.global_batch_size * second.data.seq_length if second else 0
    tuned = (config.sft.max_steps or 0) * config.sft.global_batch_size * config.sft.seq_length * ("sft" in stages)
    teacher = source if config.sft.forward_kl else None
    ranking = search_flops(config, source, target)
    flops = tokens * flops_per_token(source, target, length) + ranking
    flops += pretrained * flops_per_token(None, source, length)
    flops += longer * flops_per_token(source, target, config.distill_long.seq_length)
    flops += tuned * flops_per_token(teacher, target, config.sft.seq_length)
    aligned = [(_phase(config, "sft"), teacher), (_phase(config, "dpo"), None)]
    rewarded = _phase(config, "grpo") if config.grpo.engine == "megatron" else None
    peak = config.cluster.gpu_peak_tflops * 1e12
    return Budget(
        source=source,
        target=target,
        tokens=tokens,
        pretrained=pretrained,
        longer=longer,
        tuned=tuned,
        candidates=distilled_candidates(config),
        flops=flops,
        ranking=ranking / flops if flops else 0.0,
        gpu_hours=flops / (peak * ASSUMED_MFU) / 3600 if peak else None,
        memory=max(
            [memory_per_device(config, target, source)] * distils
            + [memory_per_device(config, source)] * pretrains
            + ([memory_per_device(second, target, source)] if second else [])
            + [memory_per_device(phase, target, beside) for phase, beside in aligned if phase]
            + ([rollout_memory(rewarded, target)] if rewarded else []),
            key=lambda parts: sum(parts.values()),
            default={},  # only grpo, which is NeMo-RL's
        ),
        disk=disk_per_stage(config, source, target),
    )


def _phase(config: Config, stage: str) -> Config | None:
    """The configuration of a stage with a pace of its own, which has no cached teacher; None where it is not run."""
    stages = config.pipeline.stages
    if stage not in stages:
        return None
    pipeline = replace(config.pipeline, stages=[name for name in stages if name != "teacher"])
    return replace(config.paced_by(getattr(config, stage)), pipeline=pipeline)


def flops_per_token(teacher: Architecture | None, student: Architecture, seq_length: int) -> float:
    """FLOPs of training on one token: three passes of the student (backward is two), one of a teacher beside it."""
    return 3 * _forward_flops(student, seq_length) + (_forward_flops(teacher, seq_length) if teacher else 0)


def distilled_candidates(config: Config) -> int:
    """How many candidates the search distils."""
    settings = config.prune.search
    return settings.top_k if "search" in config.pipeline.stages and settings.distill_steps else 0


def search_flops(config: Config, source: Architecture, target: Architecture) -> float:
    """FLOPs of ranking candidates of about the target's size: three passes of each, and of the teacher one for all.

    For a loss that no cache can give, the teacher runs beside each candidate.
    """
    count, length = distilled_candidates(config), config.data.seq_length
    tokens = config.prune.search.distill_steps * config.data.global_batch_size * length
    teachers = min(count, 1) if config.cacheable else count
    return tokens * (3 * count * _forward_flops(target, length) + teachers * _forward_flops(source, length))


def memory_per_device(config: Config, target: Architecture, teacher: Architecture | None = None) -> dict[str, float]:
    """Bytes of each part on the fullest device while `target` is trained."""
    tp, pp, dp = config.parallel.tp, config.parallel.pp, config.data_parallel_size
    mixed, alone = config.trainer.precision == "bf16-mixed", teacher is None or "teacher" in config.pipeline.stages
    width, adam = (2, 12) if mixed else (4, 8)
    student = _parameters_per_device(target, tp, pp)
    rows = config.data.micro_batch_size * config.data.seq_length / config.parallel.cp
    microbatches = config.data.global_batch_size // (config.data.micro_batch_size * dp)
    heads = target.head_dim * (2 * target.num_attention_heads + 2 * target.num_query_groups)
    kept = 4 * target.hidden_size / (tp if config.parallel.sequence_parallel else 1)
    kept += (heads + 3 * target.ffn_hidden_size) / tp
    # The first pipeline stage runs ahead by up to pp micro-batches, each with its share of the layers.
    layers = target.num_layers / pp * min(pp, microbatches)
    activations = layers * kept
    if config.trainer.recompute == "full":  # the input of every layer, and one layer that is computed again
        activations = layers * target.hidden_size + kept
    return {
        "student weights": student * width,
        "gradients": student * 4,
        "optimizer": student * adam / (dp if config.cluster.gpu_memory_gib else 1),
        "teacher weights": 0 if alone else _parameters_per_device(teacher, tp, pp) * width,
        "logits": (2 if alone else 3) * rows * target.padded_vocab_size(tp) / tp * width,
        "activations": activations * rows * width,
    }


def rollout_memory(config: Config, model: Architecture) -> dict[str, float]:
    """The same while `model` is trained on its own answers: with the reference, and the cache that sampling needs.

    Answers are sampled when no activations are there, so that only what the cache takes beyond these counts.
    """
    own, parallel = config.grpo, config.parallel
    enough = parallel.pp * own.micro_batch_size * config.data_parallel_size  # for the pipeline to be full
    parts = memory_per_device(replace(config, data=replace(config.data, global_batch_size=enough)), model)
    if own.kl:
        parts["reference weights"] = parts["student weights"]
    width = 2 if config.trainer.precision == "bf16-mixed" else 4
    longest = own.max_prompt_tokens + own.max_answer_tokens
    layers = model.num_layers / parallel.pp * 2 * model.num_query_groups * model.head_dim / parallel.tp
    cache = own.rollout_batch_size * longest * layers * width
    return parts | {"KV cache": max(cache - parts["activations"], 0)}


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
    }
    return {stage: size for stage, size in sizes.items() if size and stage in config.pipeline.stages}


def teacher_bytes_per_token(config: Config, source: Architecture) -> float:
    """What the stage `teacher` keeps of a token (see engine/teacher_cache.py)."""
    width, n = 2 if source.vocab_size <= 2**16 else 3, config.teacher.samples_per_token
    if config.teacher.kind == "top_k":
        return config.teacher.top_k * (width + 2)
    return width * n**DISTINCT_DRAWS + n / 8 + 2


def table(config: Config, budget: Budget) -> str:
    """The budget as lines of text; what is estimated says so."""
    data, cluster, world = config.data, config.cluster, config.world_size
    rows = [
        (
            name,
            f"{model.num_parameters():,}",
            f"parameters ({model.num_parameters('once'):,} with one embedding matrix)",
        )
        for name, model in (("source", budget.source), ("target", budget.target))
    ]
    for name, tokens, steps, batch in (
        ("pretrain", budget.pretrained, config.pretrain.max_steps, data),
        ("training", budget.tokens, config.trainer.max_steps, data),
        ("longer", budget.longer, config.distill_long.max_steps, config.distill_long),
        ("sft", budget.tuned, config.sft.max_steps, config.sft),
    ):
        if tokens:
            size = f"{steps:,} steps * {batch.global_batch_size:,} sequences * {batch.seq_length:,}"
            rows.append((name, f"{tokens:,}", f"tokens = {size}"))
    for name in ("sft", "dpo"):
        own = getattr(config, name)
        if name in config.pipeline.stages and not own.max_steps:
            rows.append((name, f"{own.epochs:g}", "epochs: its tokens are counted once they are there, not here"))
    if "grpo" in config.pipeline.stages:
        own = config.grpo
        often = f"{own.max_steps:,} steps" if own.max_steps else f"{own.epochs:g} epochs"
        each = f"{often} * {own.global_batch_size:,} prompts * {own.group_size} answers of at most"
        rows.append(("grpo", f"{own.max_answer_tokens:,}", f"tokens, {each}: counted once they are there, not here"))
    ranking = f", {budget.ranking:.0%} of it to rank {budget.candidates} candidates" if budget.candidates else ""
    rows.append(("compute", f"{budget.flops:.2e}", f"FLOPs (estimate){ranking}"))
    if budget.gpu_hours is not None:
        assumed = f"estimate, assuming {ASSUMED_MFU:.0%} of {cluster.gpu_peak_tflops:g} TFLOP/s"
        hours = f"GPU-hours: {budget.gpu_hours / world:.1f} hours on {world} GPUs ({assumed})"
        rows.append(("time", f"{budget.gpu_hours:,.0f}", hours))
    limit = f", of {cluster.gpu_memory_gib:g} GiB" if cluster.gpu_memory_gib else ""
    rows.append(("memory", size_text(sum(budget.memory.values())), f"per device{limit} (estimate)"))
    rows += [("", size_text(size), f"  {name}") for name, size in budget.memory.items()]
    rows.append(("disk", size_text(sum(budget.disk.values())), "(estimate)"))
    rows += [("", size_text(size), f"  {stage}") for stage, size in budget.disk.items()]
    return "\n".join(f"{name:<9}{number:>16} {text}" for name, number, text in rows)


def size_text(size: float) -> str:
    """Bytes as GiB, or as MiB when there are few."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB else f"{size / 2**20:,.1f} MiB"


def _forward_flops(model: Architecture, seq_length: int) -> float:
    attention = 4 * model.num_layers * model.num_attention_heads * model.head_dim * seq_length
    return 2 * model.num_parameters("once") + attention


def _parameters_per_device(model: Architecture, tp: int, pp: int) -> float:
    """Parameters on the fullest pipeline stage; the norms, which tp does not split, are a ten-thousandth of them."""
    vocabulary = model.padded_vocab_size(tp) * model.hidden_size
    both = model.vocab_size * model.hidden_size * (1 if model.tie_embeddings else 2)
    matrices = 1 if pp > 1 or model.tie_embeddings else 2  # with pp the first stage has one, the last the other
    return ((model.num_parameters() - both) / pp + matrices * vocabulary) / tp
