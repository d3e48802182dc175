"""Shapes: of the source, of what it is pruned to, and what the stages ask of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config, view
from bielik_nemo.config_prune import Target
from bielik_nemo.errors import CheckpointError, ConfigError

SEQUENCES = {  # and the stages that read so many tokens at a time
    "data.seq_length": {"adapt", "pretrain", "score", "teacher", "distill", "evaluate"},
    "prune.calibration.seq_length": {"score"},
    "distill_long.seq_length": {"distill_long"},
    "sft.seq_length": {"sft"},
    "dpo.seq_length": {"reference", "dpo"},
    "grpo.seq_length": {"grpo"},
}


def problems(config: Config) -> list[str]:
    """Every problem as `key: found ..., allowed: ...`, where the source's shape is known."""
    try:
        source = source_architecture(config)
    except ConfigError as error:
        return [str(error)]
    return shape_problems(config, source, config.pipeline.stages) if source else []


def source_architecture(config: Config) -> Architecture | None:
    """Shape given by `model.shape`; None when it is to be read from the checkpoint. Raises `ConfigError`."""
    if config.model.shape is None:
        return None
    try:
        return Architecture(**asdict(config.model.shape), qkv_bias=config.model.shape.model_type == "qwen2")
    except ConfigError as error:
        raise ConfigError(f"model.shape: {error}") from None


def target_architecture(config: Config, source: Architecture, target: Target | None = None) -> Architecture:
    """Shape of the pruned model.

    Args:
        config: `prune.drop_layers` gives the number of layers where the target gives none.
        source: shape of the model that is pruned.
        target: sizes wanted; None: `prune.target`.

    Raises:
        ConfigError: the source cannot be cut to it, the layers that are to be dropped and kept contradict it, or the
            student that was cut elsewhere cannot be read or has another vocabulary.
    """
    if config.prune.student:
        return _student_architecture(config, source)
    prune, sizes = config.prune, asdict(target or config.prune.target)
    dropped = len(prune.drop_layers or ())
    count = source.num_layers - dropped if sizes["num_layers"] is None else sizes["num_layers"]
    problems = layer_problems(
        source.num_layers, count, prune.keep_first_layers, prune.keep_last_layers, prune.drop_layers
    )
    if dropped and not problems:
        sizes["num_layers"] = count
    try:
        found = source.pruned_to(**sizes)
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("; ".join(problems))
    if prune.compensation.rotation and found.hidden_size < source.hidden_size:
        # A rotated stream needs the last norm's gains in the output matrix, and not in the embedding.
        found = replace(found, tie_embeddings=False)
    return found


def _student_architecture(config: Config, source: Architecture) -> Architecture:
    try:
        found = Architecture.from_hf(config.prune.student)
    except CheckpointError as error:
        raise ConfigError(f"prune.student: {error}") from None
    if found.vocab_size != source.vocab_size:
        raise ConfigError(
            f"prune.student: found vocab_size {found.vocab_size} in {config.prune.student}, allowed: the source "
            f"model's {source.vocab_size}, since it is to learn from its predictions"
        )
    return found


def other_shape(found: Architecture, wanted: Architecture) -> str:
    """What two shapes differ in, but for the context and the family's name; empty when weights of both can be mixed."""
    left_out = ("max_position_embeddings", "model_type")
    pairs = {name: (value, getattr(wanted, name)) for name, value in vars(found).items() if name not in left_out}
    return ", ".join(f"{name} {a}, not {b}" for name, (a, b) in pairs.items() if a != b)


def layer_problems(
    num_layers: int, count: int, keep_first: int, keep_last: int, drop_layers: Sequence[int] | None
) -> list[str]:
    """What contradicts what, when `count` of `num_layers` layers stay, among them the first and the last ones."""
    drop = list(drop_layers or ())
    strange = sorted({i for i in drop if not 0 <= i < num_layers})
    twice = sorted({i for i in drop if drop.count(i) > 1})
    if strange or twice:
        return [
            f"prune.drop_layers: found {i}{words}, allowed: 0 to {num_layers - 1}, each once"
            for indices, words in ((strange, ""), (twice, " twice"))
            for i in indices
        ]
    if len(drop) == num_layers:
        return [f"prune.drop_layers: found all {num_layers} layers, allowed: at most {num_layers - 1}"]
    if drop_layers is not None and num_layers - len(drop) != count <= num_layers:
        return [
            f"prune.drop_layers: found {len(drop)} of {num_layers} layers, "
            f"allowed: {num_layers - count}, which leave prune.target.num_layers={count}"
        ]
    if keep_first + keep_last > count:
        return [
            f"prune.keep_first_layers + prune.keep_last_layers: found {keep_first} + {keep_last}, "
            f"allowed: together at most the {count} layers that stay"
        ]
    return [
        f"prune.drop_layers: found {i}, allowed: none that prune.keep_{end}_layers={kept} keeps"
        for end, kept, ends in (
            ("first", keep_first, range(keep_first)),
            ("last", keep_last, range(num_layers - keep_last, num_layers)),
        )
        for i in sorted(set(drop) & set(ends))
    ]


def shape_problems(config: Config, source: Architecture, stages: Sequence[str]) -> list[str]:
    """What is wrong with pruning and splitting a model of this shape as the configuration says, for these stages."""
    try:
        target = target_architecture(config, source)
    except ConfigError as error:
        return str(error).split("; ")
    tp, pp = config.parallel.tp, config.parallel.pp
    found = [f"{problem} (source model)" for problem in source.check_parallel(tp, pp)]
    if target != source:
        found += [f"{problem} (pruned model)" for problem in target.check_parallel(tp, pp)]
    longest = source.max_position_embeddings
    reading = {stage for stage in stages if stage != "evaluate" or "data" in stages}
    for key, readers in SEQUENCES.items():
        length = view(config, [key])[key]
        stretched = key == "distill_long.seq_length" and config.distill_long.rotary_base
        if length > longest and not stretched and not readers.isdisjoint(reading):
            more = ", or more with distill_long.rotary_base" if key.startswith("distill_long") else ""
            found.append(f"{key}: found {length}, allowed: 1 to {longest}, the model's context{more}")
    if "teacher" in stages and config.teacher.kind == "top_k" and config.teacher.top_k > source.vocab_size:
        found.append(f"teacher.top_k: found {config.teacher.top_k}, allowed: 1 to {source.vocab_size}, the vocabulary")
    if "adapt" in stages:
        found += adapt_problems(config, source.num_layers)
    if "score" in stages:
        found += importance_problems(config, source.num_layers, target.num_layers)
    if source.sliding_window and not config.cluster.gpu_memory_gib:
        found += _windowed(config, stages)
    if not {"distill", "distill_long"}.isdisjoint(stages):
        found += hidden_problems(config, target.num_layers, source.num_layers)
    return found


def adapt_problems(config: Config, num_layers: int) -> Iterator[str]:
    """What is wrong with training the outermost of so many layers."""
    boundary, pp = config.adapt.boundary_layers, config.parallel.pp
    if 2 * boundary > num_layers:
        yield f"adapt.boundary_layers: found {boundary}, allowed: 0 to {num_layers // 2}, half of the layers"
    size = num_layers // pp
    if any(boundary <= size * rank and size * (rank + 1) <= num_layers - boundary for rank in range(1, pp - 1)):
        yield f"parallel.pp: found {pp}, allowed: 1 or 2 with adapt, which leaves the stages between nothing to train"


def _windowed(config: Config, stages: Sequence[str]) -> Iterator[str]:
    """What keeps texts of a sequence apart: with a window, Megatron's own attention takes no mask besides (0.15.3)."""
    window = "without GPUs (cluster.gpu_memory_gib=0), for a model with a sliding window"
    if config.data.separate_documents and not {"pretrain", "teacher", "distill", "distill_long"}.isdisjoint(stages):
        yield f"data.separate_documents: found True, allowed: False {window}"
    if config.sft.packing and "sft" in stages:
        yield f"sft.packing: found True, allowed: False {window}"
    for stage in ("reference", "dpo", "grpo"):
        if stage in stages:
            yield f"pipeline.stages: found {stage}, which keeps answers apart; not possible {window}"


def hidden_problems(config: Config, student: int, teacher: int) -> Iterator[str]:
    """What is wrong with comparing layers of a student and a teacher of so many, which share the pipeline stages."""
    pp = config.parallel.pp
    for pair in config.distill.hidden_layers:
        stages = [layer * pp // count for layer, count in zip(pair, (student, teacher), strict=True)]
        if not all(0 <= layer < count for layer, count in zip(pair, (student, teacher), strict=True)):
            yield (
                f"distill.hidden_layers: found {pair}, allowed: a student's layer, 0 to {student - 1}, "
                f"and a teacher's, 0 to {teacher - 1}"
            )
        elif stages[0] != stages[1]:
            first, last = (-(-teacher * end // pp) for end in (stages[0], stages[0] + 1))
            yield (
                f"distill.hidden_layers: found {pair}, allowed: for the student's layer {pair[0]} the teacher's "
                f"{first} to {last - 1}, which parallel.pp={pp} puts on the same pipeline stage"
            )


def importance_problems(config: Config, num_layers: int, count: int) -> Iterator[str]:
    """What is wrong with measuring the importance of `num_layers` layers, of which `count` stay."""
    settings, length = config.prune.importance, config.prune.calibration.seq_length
    for size in settings.block_sizes:
        if not 1 <= size < num_layers:
            yield f"prune.importance.block_sizes: found {size}, allowed: 1 to {num_layers - 1}"
    if settings.layers != "block_influence" and length < 2:
        yield f"prune.calibration.seq_length: found {length}, allowed: at least 2 to measure a loss"
    needed = num_layers - count
    chosen = settings.layers == "contiguous_block" and config.prune.drop_layers is None
    if chosen and needed and needed not in settings.block_sizes:
        yield (
            f"prune.importance.block_sizes: found {settings.block_sizes}, allowed: lists with {needed}, the number of "
            f"layers to drop ({num_layers} - {count})"
        )
