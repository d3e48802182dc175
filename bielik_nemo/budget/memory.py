"""Memory of one rank while a stage works, by part: what is there at the moment when there is most of it.

Parameters are exact (see ranks.py). The rest is an estimate, by these rules:

- Weights: bf16 in mixed precision, else float32. Gradients: float32, and the vocabulary's once more, as it comes out of
  backward. Optimizer: two Adam moments, and in mixed precision a master copy, all float32; on GPUs data-parallel ranks
  share them out. A frozen model (LoRA) has gradients and moments of its adapters alone.
- Activations: what backward keeps of a layer. On GPUs as in arXiv 2205.05198 section 4 for a gated FFN, grouped queries
  and an attention without s x s matrices: 4h + (2nd + 2gd + 3f) / tp elements of a token. Megatron's own layers, which
  a CPU has, keep what goes into each of their steps, and the softmax: 6h + (4nd + 5f + ns) / tp. It is 4ns there, as
  measured (benchmarks/memory.md): glibc 2.36 does not hand an aligned block out again for one of the same size.
  Pipeline rank p of pp holds those of pp - p micro-batches.
- Logits: the model's, a gradient for every part of the loss, a living teacher's; of the last pipeline rank.
- Teacher and reference: their weights. KV cache: of all answers that are sampled side by side, as long as they may be;
  activations are not there then, so that only what the cache takes beyond them counts.
- Runtime: on a CPU the libraries, as measured in the process that asks. On a GPU `GPU_RUNTIME`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from bielik_nemo.architecture import Architecture
from bielik_nemo.budget.ranks import parameters, ranks
from bielik_nemo.config import Config
from bielik_nemo.config_align import LoRA

GIB = 2**30
GPU_RUNTIME = 3 * GIB
"""An assumption, not a measurement: CUDA's context, NCCL's buffers, workspaces of libraries, fragmentation."""
CHUNKS = {True: 5 * 64 * 2**20, False: 5 * 4 * 2**20}
"""float32 copies that a loss makes of some tokens' logits, with and without GPUs (losses/vocab_parallel.py)."""


@dataclass(frozen=True)
class Work:
    """What is in memory while a stage works.

    Attributes:
        config: with the stage's own settings in their places.
        model: that it trains or runs.
        losses: parts of its loss, each with a gradient of the logits; 0: it runs forward only.
        teacher: that runs beside it.
        reference: whether a copy of the model is kept.
        lora: adapters that are trained instead of it.
    """

    config: Config
    model: Architecture
    losses: int = 1
    teacher: Architecture | None = None
    reference: bool = False
    lora: LoRA | None = None


def paced(config: Config, stage: str) -> Config:
    """The configuration with a stage's pace in its places, where it has its own."""
    if stage not in ("adapt", "pretrain", "distill_long", "sft", "dpo", "grpo"):
        return config
    found = config.paced_by(getattr(config, stage))
    if stage in ("dpo", "grpo"):  # how many sequences they fill is known later; the pipeline is taken to be full
        enough = config.parallel.pp * found.data.micro_batch_size * copies(config)
        found = replace(found, data=replace(found.data, global_batch_size=enough))
    return found


def work(config: Config, stage: str, source: Architecture, target: Architecture) -> Work | None:
    """What a stage has in memory of models; None: nothing that is worth counting.

    Args:
        config: of the run.
        stage: its name.
        source: shape of the source model.
        target: shape of the model that alignment begins with: the pruned one, where something is cut.
    """
    own, distils = paced(config, stage), sum(weight > 0 for weight in asdict(config.distill.weights).values())
    cached = "teacher" in config.pipeline.stages
    model = {
        "import_hf": Work(own, source, losses=0),
        "swap_tokenizer": Work(own, source, losses=0),
        "adapt": Work(own, source),  # as if all of it were trained: its frozen layers have no gradients nor moments
        "pretrain": Work(own, source),
        "score": Work(own, source, losses=0),
        "search": Work(own, target, distils, None if cached or config.cacheable else source),
        "prune": Work(own, source, losses=0),
        "teacher": Work(own, source, losses=0),
        "distill": Work(own, target, distils, None if cached else source),
        "distill_long": Work(own, target, distils, source),
        "reference": Work(paced(config, "dpo"), target, losses=0),
        "dpo": Work(own, target),
        "grpo": Work(own, target, reference=config.grpo.kl > 0),
        "export": Work(own, target, losses=0),
        "evaluate": Work(own, target, losses=0, teacher=source),  # which agreement is measured with
    }
    if stage == "sft":
        taught, adapters = config.sft.forward_kl > 0, config.sft.lora
        return Work(own, target, 1 + taught, source if taught else None, lora=adapters if adapters.rank else None)
    return model.get(stage)


def copies(config: Config) -> int:
    """Of the model; one also where a stage's nodes hold less than the layout of training asks for."""
    return max(config.data_parallel_size, 1)


def per_rank(of: Work, tp: int, pp: int, libraries: float = 0.0) -> list[dict[str, float]]:
    """Bytes of each part on every pipeline rank.

    Args:
        of: what is in memory.
        tp: tensor parallel size.
        pp: pipeline parallel size.
        libraries: what a process without a model takes, where there is no GPU.
    """
    config, model, width = of.config, of.model, 2 if of.config.trainer.precision == "bf16-mixed" else 4
    gpu, trains = config.cluster.gpu_memory_gib > 0, of.losses > 0
    if not trains:
        width = 2 if config.model.dtype == "bfloat16" else 4
    sharers = copies(config) * config.parallel.cp if gpu else 1
    rows = config.data.micro_batch_size * config.data.seq_length / config.parallel.cp
    logits = rows * model.padded_vocab_size(tp) / tp * width
    teachers = ranks(of.teacher, tp, pp) if of.teacher else [None] * pp
    found = []
    for stage, (rank, teacher) in enumerate(zip(ranks(model, tp, pp), teachers, strict=True)):
        own = parameters(rank)
        trained = trains * (own if of.lora is None else _adapters(model, of.lora, rank["num_layers"]) / tp)
        parts = {
            "weights": (own + (trained if of.lora else 0)) * width,
            "gradients": trained * 4 + (trained == own) * max(rank["embedding"], rank["output"]) * width,
            "optimizer": trained * (12 if width == 2 else 8) / sharers,
            "activations": rows * width * _kept(of, rank["num_layers"], tp, pp, stage),
            "logits": 0.0,
        }
        if stage == pp - 1:
            parts["logits"] = logits * (1 + of.losses + (of.teacher is not None)) + CHUNKS[gpu]
        if teacher:
            parts["teacher"] = parameters(teacher) * width
        if of.reference:
            parts["reference"] = own * width
            cache = _cache(of, rank["num_layers"], width) / tp
            parts["KV cache"] = max(cache - parts["activations"], 0)
        parts["runtime"] = GPU_RUNTIME if gpu else libraries
        found.append(parts)
    return found


def fullest(each: Sequence[dict[str, float]]) -> dict[str, float]:
    """The parts of the rank with the most."""
    return max(each, key=lambda parts: sum(parts.values()))


def _kept(of: Work, layers: int, tp: int, pp: int, stage: int) -> float:
    """Elements of a row of a micro-batch that are kept on a pipeline rank when there are most of them."""
    model, config = of.model, of.config
    queries, keys = model.num_attention_heads * model.head_dim, model.num_query_groups * model.head_dim
    if config.cluster.gpu_memory_gib:
        outside, inside, scores = 4 * model.hidden_size, 2 * queries + 2 * keys + 3 * model.ffn_hidden_size, 0
    else:
        outside, inside = 6 * model.hidden_size, 4 * queries + 5 * model.ffn_hidden_size
        scores = 4 * model.num_attention_heads * config.data.seq_length
    if config.parallel.sequence_parallel:
        outside /= tp
    whole = outside + (inside + scores) / tp
    if not of.losses:
        return whole  # a layer's, while it is computed
    microbatches = config.data.global_batch_size // (config.data.micro_batch_size * copies(config))
    ahead = min(pp - stage, max(microbatches, 1))
    if config.trainer.recompute == "full":  # the input of every layer, and one layer that is computed again
        return ahead * layers * model.hidden_size + whole
    if config.trainer.recompute == "selective":
        return ahead * layers * (whole - scores / tp) + scores / tp
    return ahead * layers * whole


def _cache(of: Work, layers: int, width: int) -> float:
    """Bytes of keys and values of all answers that are sampled side by side, over all tensor ranks."""
    own = of.config.grpo
    tokens = own.rollout_batch_size * (own.max_prompt_tokens + own.max_answer_tokens)
    return tokens * replace(of.model, num_layers=layers).kv_cache_bytes_per_token(width)


def _adapters(model: Architecture, lora: LoRA, layers: int) -> int:
    """Parameters of the adapters of so many layers: two thin matrices for each that they are added to."""
    queries, keys = model.num_attention_heads * model.head_dim, model.num_query_groups * model.head_dim
    ends = {
        "linear_qkv": model.hidden_size + queries + 2 * keys,
        "linear_proj": queries + model.hidden_size,
        "linear_fc1": model.hidden_size + 2 * model.ffn_hidden_size,
        "linear_fc2": model.ffn_hidden_size + model.hidden_size,
    }
    return layers * lora.rank * sum(ends[name] for name in lora.targets)
