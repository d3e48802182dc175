"""What is impossible in a composed configuration, as far as it can be seen without a file.

Types and key names are the schema's; here are ranges, allowed words, and what must fit together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import LIVE_ONLY, STAGES, Config, DistillWeights, view
from bielik_nemo.config_prune import BlendSource, Target, TextSource
from bielik_nemo.errors import CheckpointError, ConfigError
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
    "teacher.samples_per_token",
    "teacher.top_k",
    "distill.temperature",
    "distill.gate_max_loss",
    "distill.gate_tolerance",
    "data.held_out_tokens",
    "data.seq_length",
    "data.global_batch_size",
    "data.micro_batch_size",
    "optim.lr",
    "pretrain.max_steps",
    "pretrain.lr",
    "distill_long.seq_length",
    "distill_long.max_steps",
    "distill_long.lr",
    "distill_long.global_batch_size",
    "distill_long.micro_batch_size",
    "parallel.tp",
    "parallel.pp",
    "parallel.cp",
    "trainer.max_steps",
    "trainer.log_every",
    "trainer.validate_every",
    "trainer.checkpoint_every",
    "trainer.keep_last",
    "cluster.nodes",
    "export.max_shard_gib",
    "export.parity_tokens",
    "export.parity_tolerance",
    "evaluate.batch_size",
    "evaluate.sample_tokens",
)
NOT_NEGATIVE = ("run.seed", "optim.min_lr", "optim.warmup_steps", "optim.weight_decay", "optim.clip_grad")
NOT_NEGATIVE += tuple(f"{phase}.{key}" for phase in ("pretrain", "distill_long") for key in ("min_lr", "warmup_steps"))
NOT_NEGATIVE += tuple(f"{phase}.decay_steps" for phase in ("optim", "pretrain", "distill_long"))
NOT_NEGATIVE += ("cluster.gpu_memory_gib", "cluster.gpu_peak_tflops", "prune.keep_first_layers")
NOT_NEGATIVE += ("prune.keep_last_layers", "prune.search.distill_steps", "prune.search.memory_bandwidth_gb_s")
NOT_NEGATIVE += tuple(f"distill.weights.{field.name}" for field in fields(DistillWeights))
POSITIVE_OR_NULL = ("cluster.devices_per_node", "prune.target.num_layers", "prune.target.hidden_size")
POSITIVE_OR_NULL += ("optim.reference_tokens", "distill_long.rotary_base")
POSITIVE_OR_NULL += ("prune.target.ffn_hidden_size", "prune.target.num_attention_heads")
POSITIVE_OR_NULL += ("prune.target.num_query_groups", "trainer.max_loss_spike", "trainer.max_hours")
POSITIVE_OR_NULL += tuple(f"prune.search.max_{budget}" for budget in ("parameters", "memory_gib", "latency_ms"))
POSITIVE_OR_NULL += tuple(
    f"prune.search.{axis}.{end}"
    for axis in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")
    for end in ("min", "max")
)
FRACTIONS = ("data.held_out_fraction", "optim.beta1", "optim.beta2", "prune.search.tolerance")  # below 1
LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")  # names a file; the form of BCP 47
SEQUENCES = {  # and the stages that read so many tokens at a time
    "data.seq_length": {"pretrain", "score", "teacher", "distill", "evaluate"},
    "prune.calibration.seq_length": {"score"},
    "distill_long.seq_length": {"distill_long"},
}
SCHEDULES = ("cosine", "wsd", "constant")
WORDS = {
    "model.dtype": ("float32", "bfloat16"),
    "teacher.kind": ("sampled", "top_k"),
    "trainer.precision": ("32", "bf16-mixed"),
    "trainer.recompute": ("none", "selective", "full"),
    "optim.schedule": SCHEDULES,
    "pretrain.schedule": SCHEDULES,
    "distill_long.schedule": SCHEDULES,
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
    return found or [
        *_training(config),
        *_mixture(config),
        *_compensation(config),
        *_student(config),
        *_stages(config),
        *_search(config),
        *_shapes(config),
    ]


def text_sources(config: Config) -> Iterator[tuple[str, TextSource]]:
    """Every source of text and its key, `data.sources[0]` and so on."""
    for key, sources in (("data", config.data.sources), ("prune.calibration", config.prune.calibration.sources)):
        for index, source in enumerate(sources):
            yield f"{key}.sources[{index}]", source


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
    for key, readers in SEQUENCES.items():
        length = view(config, [key])[key]
        stretched = key == "distill_long.seq_length" and config.distill_long.rotary_base
        if length > longest and not stretched and not readers.isdisjoint(stages):
            more = ", or more with distill_long.rotary_base" if key.startswith("distill_long") else ""
            found.append(f"{key}: found {length}, allowed: 1 to {longest}, the model's context{more}")
    if "teacher" in stages and config.teacher.kind == "top_k" and config.teacher.top_k > source.vocab_size:
        found.append(f"teacher.top_k: found {config.teacher.top_k}, allowed: 1 to {source.vocab_size}, the vocabulary")
    if "score" in stages:
        found += importance_problems(config, source.num_layers, target.num_layers)
    if not {"distill", "distill_long"}.isdisjoint(stages):
        found += hidden_problems(config, target.num_layers, source.num_layers)
    return found


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


def _ranges(config: Config) -> Iterator[str]:
    for keys, good, allowed in (
        (POSITIVE, lambda value: 0 < value < math.inf, "a positive number"),
        (NOT_NEGATIVE, lambda value: 0 <= value < math.inf, "zero or a positive number"),
        (POSITIVE_OR_NULL, lambda value: value is None or value > 0, "a positive number, or null"),
        (FRACTIONS, lambda value: 0 <= value < 1, "0 up to, not including, 1"),
        (("distill.jensen_shannon_beta",), lambda value: 0 < value < 1, "between 0 and 1, both excluded"),
        (("run.name", "run.dir"), lambda value: value.strip(), "text that is not blank"),
    ):
        for key, value in view(config, keys).items():
            if not good(value):
                yield f"{key}: found {value!r}, allowed: {allowed}"
    for key, words in WORDS.items():
        value = view(config, [key])[key]
        if value not in words:
            yield f"{key}: found {value!r}, allowed: {', '.join(words)}{nearest(value, words)}"
    for pair in config.distill.hidden_layers:
        if len(pair) != 2:
            yield f"distill.hidden_layers: found {pair}, allowed: pairs [student layer, teacher layer]"
    paths = {"run.dir": config.run.dir, "model.source": config.model.source}
    paths |= {"prune.importance.scores": config.prune.importance.scores, "prune.student": config.prune.student}
    for key, source in text_sources(config):
        paths[f"{key}.path"] = source.path
        yield from _text_source(key, source)
    for key, path in paths.items():
        if path.startswith("~"):  # no shell expands it here, and a directory of that name would be made
            yield f"{key}: found {path!r}, allowed: a path without ~, such as {path.replace('~', '$HOME', 1)!r}"


def _text_source(key: str, source: TextSource) -> Iterator[str]:
    for name in ("path", "text_key"):
        if not (text := getattr(source, name)).strip():
            yield f"{key}.{name}: found {text!r}, allowed: text that is not blank"
    if source.language and not LANGUAGE.fullmatch(source.language):
        yield f"{key}.language: found {source.language!r}, allowed: a word such as pl or en-GB, or none"
    if source.weight is not None and not 0 < source.weight < math.inf:
        null = "" if isinstance(source, BlendSource) else ", or null"
        yield f"{key}.weight: found {source.weight}, allowed: a positive number{null}"


def _training(config: Config) -> Iterator[str]:
    batches, schedules = {"data": config.data}, {"optim": (config.optim, "trainer.max_steps", config.trainer.max_steps)}
    for name in ("pretrain", "distill_long"):
        if name in config.pipeline.stages:
            phase = getattr(config, name)
            schedules[name] = (phase, f"{name}.max_steps", phase.max_steps)
    if "distill_long" in config.pipeline.stages:
        batches["distill_long"] = config.distill_long
    for name, (schedule, key, steps) in schedules.items():
        warmup, decay = schedule.warmup_steps, schedule.decay_steps
        if schedule.min_lr > schedule.lr:
            yield f"{name}.min_lr: found {schedule.min_lr}, allowed: 0 to {name}.lr={schedule.lr}"
        if warmup >= steps:
            yield f"{name}.warmup_steps: found {warmup}, allowed: less than {key}={steps}"
        elif schedule.schedule == "wsd" and not 1 <= decay <= steps - warmup:
            allowed = f"1 to {steps - warmup}, the steps after warm-up, with {name}.schedule=wsd"
            yield f"{name}.decay_steps: found {decay}, allowed: {allowed}"
    parallel = config.parallel
    world, split = config.world_size, parallel.tp * parallel.pp * parallel.cp
    if world % split:
        yield (
            f"cluster.nodes * cluster.devices_per_node: found {world}, "
            f"allowed: multiples of parallel.tp * parallel.pp * parallel.cp = {split}"
        )
        return
    yield from _split_sequences(config)
    yield from _separate_documents(config)
    for name, batch in batches.items():
        unit = batch.micro_batch_size * config.data_parallel_size
        if batch.global_batch_size % unit:
            yield (
                f"{name}.global_batch_size: found {batch.global_batch_size}, allowed: multiples of {unit} = "
                f"{name}.micro_batch_size {batch.micro_batch_size} * data-parallel size {config.data_parallel_size}"
            )


def _separate_documents(config: Config) -> Iterator[str]:
    if not config.data.separate_documents:
        return
    if config.parallel.cp > 1:
        yield f"data.separate_documents: found True, allowed: False with parallel.cp={config.parallel.cp}"
    if config.cluster.gpu_memory_gib and config.data.micro_batch_size > 1:
        # Transformer Engine takes the documents' lengths instead of a mask, of one sequence at a time.
        yield f"data.micro_batch_size: found {config.data.micro_batch_size}, allowed: 1 with data.separate_documents"


def _split_sequences(config: Config) -> Iterator[str]:
    """What splitting the tokens of a sequence asks for."""
    parallel, lengths = config.parallel, {"data": config.data.seq_length}
    if "distill_long" in config.pipeline.stages:
        lengths["distill_long"] = config.distill_long.seq_length
    on_cpu = "without GPUs (cluster.gpu_memory_gib=0): Megatron's own attention and norms cannot"
    if parallel.cp > 1 and not config.cluster.gpu_memory_gib:
        yield f"parallel.cp: found {parallel.cp}, allowed: 1 {on_cpu}"
    if parallel.sequence_parallel and not config.cluster.gpu_memory_gib:
        yield f"parallel.sequence_parallel: found True, allowed: False {on_cpu}"
    elif parallel.sequence_parallel and parallel.tp == 1:
        yield "parallel.sequence_parallel: found True, allowed: False with parallel.tp=1"
    # Context parallelism gives each rank two pieces of a sequence, one of them from its end.
    unit = (2 * parallel.cp if parallel.cp > 1 else 1) * (parallel.tp if parallel.sequence_parallel else 1)
    for name, length in lengths.items():
        if length % unit:
            allowed = f"multiples of {unit} with this parallel.cp and parallel.tp"
            yield f"{name}.seq_length: found {length}, allowed: {allowed}"


def _mixture(config: Config) -> Iterator[str]:
    yield from _languages(config, "data.language_weights", config.data.language_weights)
    if "pretrain" in config.pipeline.stages and config.pretrain.language_weights:
        yield from _languages(config, "pretrain.language_weights", config.pretrain.language_weights)


def _languages(config: Config, key: str, languages: dict[str, float]) -> Iterator[str]:
    """What is wrong with the sources' weights where these are the languages'."""
    sources = config.data.sources
    weighted = {source.language if languages else "" for source in sources if source.weight is not None}
    for index, source in enumerate(sources):
        if languages and source.language not in languages:
            allowed = f"one that {key} has: {', '.join(languages)}"
            yield f"data.sources[{index}].language: found {source.language!r}, allowed: {allowed}"
        if source.weight is None and (source.language if languages else "") in weighted:
            beside = f", since others{' in this language' if languages else ''} have one"
            yield f"data.sources[{index}].weight: found null, allowed: a positive number{beside}"
    for language, weight in languages.items():
        if not 0 < weight < math.inf:
            yield f"{key}.{language}: found {weight}, allowed: a positive number"
        if language not in {source.language for source in sources}:
            yield f"{key}.{language}: found a language without a source, allowed: one that has some"


def _compensation(config: Config) -> Iterator[str]:
    for part in ("attention", "ffn", "blocks", "rotation") if config.prune.streaming else ():
        if getattr(config.prune.compensation, part):
            yield f"prune.compensation.{part}: found True, allowed: False with prune.streaming=True (no model runs)"


def _student(config: Config) -> Iterator[str]:
    prune = config.prune
    if not prune.student:
        return
    without = {
        "prune.streaming": prune.streaming,
        "search in pipeline.stages": "search" in config.pipeline.stages,
        "prune.target (prune=none)": any(size is not None for size in asdict(prune.target).values()),
        "prune.drop_layers": prune.drop_layers,
    }
    for other, given in without.items():
        if given:
            yield f"prune.student: found {prune.student!r}, allowed: none with {other}"


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
    if "pretrain" in stages and config.prune.streaming:
        yield "prune.streaming: found True, allowed: False with pretrain in pipeline.stages (it cuts model.source)"
    yield from _distillation(config)


def _distillation(config: Config) -> Iterator[str]:
    weights, layers = asdict(config.distill.weights), config.distill.hidden_layers
    on_logits = [name for name in weights if name != "hidden_state"]
    if not any(weights[name] for name in on_logits):
        yield f"distill.weights: found none above 0, allowed: at least one of {', '.join(on_logits)}"
    if bool(layers) != bool(weights["hidden_state"]):
        yield (
            f"distill.hidden_layers: found {layers}, allowed: "
            f"{'none' if layers else 'some pairs'} with distill.weights.hidden_state={weights['hidden_state']}"
        )
    if layers:
        yield from _hidden_states(config)
    if "teacher" not in config.pipeline.stages:
        return
    if config.distill.temperature != 1 and config.teacher.kind == "sampled":
        yield (
            f"distill.temperature: found {config.distill.temperature}, allowed: 1 with teacher in pipeline.stages and "
            "teacher.kind=sampled"
        )
    for name in LIVE_ONLY:
        if weights[name]:
            yield (
                f"distill.weights.{name}: found {weights[name]}, allowed: 0 with teacher in pipeline.stages, "
                "which keeps too little of the teacher for it"
            )


def _hidden_states(config: Config) -> Iterator[str]:
    weight = f"distill.weights.hidden_state: found {config.distill.weights.hidden_state}, allowed: 0 with"
    if "search" in config.pipeline.stages:
        yield f"{weight} search in pipeline.stages, whose candidates differ in their layers"
    if config.trainer.recompute == "full":
        yield f"{weight} trainer.recompute=full, which runs a layer again after the teacher's output is gone"
    if config.parallel.sequence_parallel:
        yield f"{weight} parallel.sequence_parallel=True, which splits the streams"


def _search(config: Config) -> Iterator[str]:
    settings = config.prune.search
    if "search" not in config.pipeline.stages:
        return
    limits = ("max_parameters", "max_memory_gib", "max_latency_ms")
    if all(getattr(settings, name) is None for name in limits):
        yield f"prune.search: found no budget, allowed: one of {', '.join(f'prune.search.{name}' for name in limits)}"
    if settings.max_latency_ms is not None and not (settings.memory_bandwidth_gb_s or settings.latency_table):
        yield (
            f"prune.search.max_latency_ms: found {settings.max_latency_ms:g}, allowed: null, or together with "
            "prune.search.memory_bandwidth_gb_s or prune.search.latency_table"
        )
    if settings.distill_steps and config.prune.streaming:
        yield f"prune.search.distill_steps: found {settings.distill_steps}, allowed: 0 with prune.streaming=True"


def _shapes(config: Config) -> list[str]:
    try:
        source = source_architecture(config)
    except ConfigError as error:
        return [str(error)]
    return shape_problems(config, source, config.pipeline.stages) if source else []
