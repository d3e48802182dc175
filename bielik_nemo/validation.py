"""What is impossible in a composed configuration, as far as it can be seen without a file.

Types and key names are the schema's; here are ranges, allowed words, and what must fit together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import STAGES, Config, view
from bielik_nemo.errors import ConfigError
from bielik_nemo.keys import nearest

POSITIVE = (
    "prune.calibration.samples",
    "prune.calibration.batch_size",
    "prune.calibration.seq_length",
    "prune.importance.layer_samples",
    "prune.search.num_layers.divisor",
    "prune.search.hidden_size.divisor",
    "prune.search.ffn_hidden_size.divisor",
    "prune.search.num_attention_heads.divisor",
    "prune.search.context",
    "prune.search.batch_size",
    "prune.search.bits_per_weight",
    "prune.search.top_k",
    "prune.compensation.samples",
    "prune.compensation.ridge",
    "distill.temperature",
    "distill.gate_max_loss",
    "distill.gate_tolerance",
    "data.held_out_tokens",
    "data.seq_length",
    "data.global_batch_size",
    "data.micro_batch_size",
    "optim.lr",
    "parallel.tp",
    "parallel.pp",
    "trainer.max_steps",
    "trainer.log_every",
    "trainer.validate_every",
    "trainer.checkpoint_every",
    "cluster.nodes",
    "export.max_shard_gib",
    "export.parity_tokens",
    "export.parity_tolerance",
    "evaluate.batch_size",
    "evaluate.sample_tokens",
)
NOT_NEGATIVE = ("run.seed", "optim.min_lr", "optim.warmup_steps", "optim.weight_decay", "optim.clip_grad")
NOT_NEGATIVE += ("cluster.gpu_memory_gib", "cluster.gpu_peak_tflops", "prune.keep_first_layers")
NOT_NEGATIVE += ("prune.keep_last_layers", "prune.search.distill_steps", "prune.search.memory_bandwidth_gb_s")
POSITIVE_OR_NULL = ("cluster.devices_per_node", "prune.target.num_layers", "prune.target.hidden_size")
POSITIVE_OR_NULL += ("prune.target.ffn_hidden_size", "prune.target.num_attention_heads")
POSITIVE_OR_NULL += ("prune.target.num_query_groups",)
POSITIVE_OR_NULL += tuple(f"prune.search.max_{budget}" for budget in ("parameters", "memory_gib", "latency_ms"))
POSITIVE_OR_NULL += tuple(
    f"prune.search.{axis}.{end}"
    for axis in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")
    for end in ("min", "max")
)
FRACTIONS = ("data.held_out_fraction", "optim.beta1", "optim.beta2", "prune.search.tolerance")  # below 1
SEQUENCES = {  # and the stages that read so many tokens at a time
    "data.seq_length": {"score", "distill", "evaluate"},
    "prune.calibration.seq_length": {"score"},
}
WORDS = {
    "model.dtype": ("float32", "bfloat16"),
    "trainer.precision": ("32", "bf16-mixed"),
    "prune.importance.batch_aggregation": ("l2", "mean", "var"),
    "prune.importance.seq_aggregation": ("mean", "l2", "var"),
    "prune.importance.layers": ("block_influence", "loss_increase", "contiguous_block"),
    "prune.search.embeddings": ("all", "once"),
    "prune.search.objective": ("parameters", "importance"),
}


def problems(config: Config) -> list[str]:
    """Every problem as `key: found ..., allowed: ...`; empty when there is none."""
    found = list(_ranges(config))
    # What must fit together is worth asking only of numbers that can be.
    return found or [*_training(config), *_stages(config), *_shapes(config)]


def source_architecture(config: Config) -> Architecture | None:
    """Shape given by `model.shape`; None when it is to be read from the checkpoint. Raises `ConfigError`."""
    if config.model.shape is None:
        return None
    try:
        return Architecture(**asdict(config.model.shape), qkv_bias=config.model.shape.model_type == "qwen2")
    except ConfigError as error:
        raise ConfigError(f"model.shape: {error}") from None


def shape_problems(config: Config, source: Architecture, stages: Sequence[str]) -> list[str]:
    """What is wrong with pruning and splitting a model of this shape as the configuration says, for these stages."""
    try:
        target = source.pruned_to(**asdict(config.prune.target))
    except ConfigError as error:
        return str(error).split("; ")
    tp, pp = config.parallel.tp, config.parallel.pp
    found = [f"{problem} (source model)" for problem in source.check_parallel(tp, pp)]
    if target != source:
        found += [f"{problem} (pruned model)" for problem in target.check_parallel(tp, pp)]
    longest = source.max_position_embeddings
    for key, readers in SEQUENCES.items():
        length = view(config, [key])[key]
        if length > longest and not readers.isdisjoint(stages):
            found.append(f"{key}: found {length}, allowed: 1 to {longest}, the model's context")
    return found


def _ranges(config: Config) -> Iterator[str]:
    for keys, good, allowed in (
        (POSITIVE, lambda value: 0 < value < math.inf, "a positive number"),
        (NOT_NEGATIVE, lambda value: 0 <= value < math.inf, "zero or a positive number"),
        (POSITIVE_OR_NULL, lambda value: value is None or value > 0, "a positive number, or null"),
        (FRACTIONS, lambda value: 0 <= value < 1, "0 up to, not including, 1"),
        (("run.name", "run.dir"), lambda value: value.strip(), "text that is not blank"),
    ):
        for key, value in view(config, keys).items():
            if not good(value):
                yield f"{key}: found {value!r}, allowed: {allowed}"
    for key, words in WORDS.items():
        value = view(config, [key])[key]
        if value not in words:
            yield f"{key}: found {value!r}, allowed: {', '.join(words)}{nearest(value, words)}"
    paths = {"run.dir": config.run.dir, "model.source": config.model.source}
    for index, source in enumerate(config.data.sources):
        paths[f"data.sources[{index}].path"] = source.path
        for name, text in asdict(source).items():
            if name != "language" and not text.strip():
                yield f"data.sources[{index}].{name}: found {text!r}, allowed: text that is not blank"
    for key, path in paths.items():
        if path.startswith("~"):  # no shell expands it here, and a directory of that name would be made
            yield f"{key}: found {path!r}, allowed: a path without ~, such as {path.replace('~', '$HOME', 1)!r}"


def _training(config: Config) -> Iterator[str]:
    optim, data, steps = config.optim, config.data, config.trainer.max_steps
    if optim.min_lr > optim.lr:
        yield f"optim.min_lr: found {optim.min_lr}, allowed: 0 to optim.lr={optim.lr}"
    if optim.warmup_steps >= steps:
        yield f"optim.warmup_steps: found {optim.warmup_steps}, allowed: less than trainer.max_steps={steps}"
    world, split = config.world_size, config.parallel.tp * config.parallel.pp
    if world % split:
        yield (
            f"cluster.nodes * cluster.devices_per_node: found {world}, "
            f"allowed: multiples of parallel.tp * parallel.pp = {split}"
        )
        return
    unit = data.micro_batch_size * config.data_parallel_size
    if data.global_batch_size % unit:
        yield (
            f"data.global_batch_size: found {data.global_batch_size}, allowed: multiples of {unit} = "
            f"data.micro_batch_size {data.micro_batch_size} * data-parallel size {config.data_parallel_size}"
        )


def _stages(config: Config) -> Iterator[str]:
    stages = config.pipeline.stages
    unknown = [stage for stage in stages if stage not in STAGES]
    for stage in unknown:
        yield f"pipeline.stages: found {stage!r}, allowed: {', '.join(STAGES)}{nearest(stage, STAGES)}"
    if not stages:
        yield f"pipeline.stages: found no stage, allowed: some of {', '.join(STAGES)}"
    ordered = [stage for stage in STAGES if stage in stages]
    if not unknown and stages != ordered:
        yield f"pipeline.stages: found {', '.join(stages)}, allowed: each once and in order: {', '.join(ordered)}"


def _shapes(config: Config) -> list[str]:
    try:
        source = source_architecture(config)
    except ConfigError as error:
        return [str(error)]
    return shape_problems(config, source, config.pipeline.stages) if source else []
