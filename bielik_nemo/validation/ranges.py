"""Values that are impossible by themselves: ranges, allowed words, names, paths."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import fields

from bielik_nemo.config import Config, view
from bielik_nemo.config_align import ChatSource, PreferenceSource
from bielik_nemo.config_grpo import TaskSource
from bielik_nemo.config_outcome import MODELS, MaxChange
from bielik_nemo.config_prune import BlendSource, TextSource
from bielik_nemo.config_training import DistillWeights
from bielik_nemo.keys import nearest

POSITIVE = (
    "tokenizers.documents",
    "swap_tokenizer.tokens",
    "swap_tokenizer.dimensions",
    "swap_tokenizer.epochs",
    "swap_tokenizer.min_count",
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
    "adapt.max_steps",
    "adapt.lr",
    "pretrain.max_steps",
    "pretrain.lr",
    "distill_long.seq_length",
    "distill_long.max_steps",
    "distill_long.lr",
    "distill_long.global_batch_size",
    "distill_long.micro_batch_size",
    "chat.held_out_tokens",
    "chat.held_out_pairs",
    "chat.held_out_tasks",
    "sft.epochs",
    "sft.seq_length",
    "sft.global_batch_size",
    "sft.micro_batch_size",
    "sft.lr",
    "sft.lora.alpha",
    "dpo.epochs",
    "dpo.seq_length",
    "dpo.global_batch_size",
    "dpo.micro_batch_size",
    "dpo.lr",
    "dpo.beta",
    "dpo.gate_tolerance",
    *(
        f"grpo.{name}"
        for name in (
            "epochs",
            "prompts_per_rollout",
            "global_batch_size",
            "passes_per_rollout",
            "rollout_batch_size",
            "max_prompt_tokens",
            "max_answer_tokens",
            "temperature",
            "seq_length",
            "micro_batch_size",
            "lr",
            "mismatch_tolerance",
            "rewards.timeout_s",
            "rewards.memory_gib",
            "rewards.workers",
        )
    ),
    "parallel.tp",
    "parallel.pp",
    "parallel.cp",
    "trainer.max_steps",
    "trainer.log_every",
    "trainer.validate_every",
    "trainer.checkpoint_every",
    "trainer.keep_last",
    "cluster.nodes",
    "launch.save_before",
    "export.max_shard_gib",
    "export.parity_tokens",
    "export.parity_tolerance",
    "evaluate.agreement_tokens",
    "evaluate.batch_size",
    "evaluate.harness.resamples",
    "evaluate.sample_tokens",
    "benchmark.repeats",
    "quantize.calibration_samples",
    *(f"quantize.max_change.{field.name}" for field in fields(MaxChange)),
)
NOT_NEGATIVE = (
    "run.seed",
    "optim.min_lr",
    "optim.warmup_steps",
    "optim.weight_decay",
    "optim.clip_grad",
)
PHASES = ("adapt", "pretrain", "distill_long", "sft", "dpo", "grpo")
NOT_NEGATIVE += tuple(f"{phase}.{key}" for phase in PHASES for key in ("min_lr", "warmup_steps"))
NOT_NEGATIVE += tuple(f"{phase}.decay_steps" for phase in ("optim", *PHASES))
NOT_NEGATIVE += ("sft.weight_decay", "sft.forward_kl", "dpo.weight_decay", "dpo.penalty", "merge.weight")
NOT_NEGATIVE += ("grpo.weight_decay", "grpo.top_k", "grpo.clip_high", "grpo.kl")
NOT_NEGATIVE += (
    "sft.lora.rank",
    "merge.snapshots",
    "quantize.keep_layers",
)
NOT_NEGATIVE += ("cluster.gpu_memory_gib", "cluster.gpu_peak_tflops", "cluster.price_per_gpu_hour", "launch.retries")
NOT_NEGATIVE += ("prune.keep_first_layers", "adapt.boundary_layers")
NOT_NEGATIVE += ("prune.keep_last_layers", "prune.search.distill_steps", "prune.search.memory_bandwidth_gb_s")
NOT_NEGATIVE += tuple(f"distill.weights.{field.name}" for field in fields(DistillWeights))
POSITIVE_OR_NULL = ("cluster.devices_per_node", "cluster.cpus_per_task")
POSITIVE_OR_NULL += ("prune.target.num_layers", "prune.target.hidden_size")
POSITIVE_OR_NULL += ("sft.max_steps", "sft.reference_tokens", "dpo.max_steps", "dpo.beta_rejected", "grpo.max_steps")
POSITIVE_OR_NULL += ("optim.reference_tokens", "distill_long.rotary_base")
POSITIVE_OR_NULL += ("prune.target.ffn_hidden_size", "prune.target.num_attention_heads")
POSITIVE_OR_NULL += ("prune.target.num_query_groups", "trainer.max_loss_spike", "trainer.max_hours")
POSITIVE_OR_NULL += ("trainer.snapshot_every", "benchmark.bandwidth_gb_s", "evaluate.harness.limit")
POSITIVE_OR_NULL += tuple(f"prune.search.max_{budget}" for budget in ("parameters", "memory_gib", "latency_ms"))
POSITIVE_OR_NULL += tuple(
    f"prune.search.{axis}.{end}"
    for axis in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")
    for end in ("min", "max")
)
FRACTIONS = (
    "grpo.clip_low",
    "grpo.rewards.max_error_share",
    "sft.lora.dropout",
    "chat.max_bad_share",
    "chat.held_out_fraction",
    "data.held_out_fraction",
    "optim.beta1",
    "optim.beta2",
    "prune.search.tolerance",
)  # below 1
LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")  # names a file; the form of BCP 47
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of a model: heads columns and names files
CHAT_FORMATS = ("auto", "messages", "alpaca", "sharegpt", "prompt_completion")
RECOMPUTE = ("none", "selective", "full")
SCHEDULES = ("cosine", "wsd", "constant")
WORDS = {
    "model.dtype": ("float32", "bfloat16"),
    "teacher.kind": ("sampled", "top_k"),
    "trainer.precision": ("32", "bf16-mixed"),
    "trainer.recompute": RECOMPUTE,
    "sft.recompute": RECOMPUTE,
    "dpo.recompute": RECOMPUTE,
    "grpo.recompute": RECOMPUTE,
    "optim.schedule": SCHEDULES,
    "adapt.schedule": SCHEDULES,
    "pretrain.schedule": SCHEDULES,
    "distill_long.schedule": SCHEDULES,
    "chat.template": ("chatml", "tokenizer"),
    "sft.schedule": SCHEDULES,
    "sft.normalization": ("tokens", "weights"),
    "dpo.schedule": SCHEDULES,
    "dpo.loss": ("bielik", "smaug", "plain"),
    "grpo.schedule": SCHEDULES,
    "grpo.engine": ("megatron", "nemo_rl"),
    "grpo.rollouts": ("megatron", "vllm"),
    "grpo.normalization": ("answer", "constant", "tokens"),
    "merge.method": ("linear", "slerp"),
    "benchmark.engine": ("transformers", "vllm"),
    "cluster.architecture": ("x86_64", "aarch64"),
    "cluster.gpus": ("gpus_per_node", "gres", "none"),
    "cluster.container": ("none", "pyxis", "apptainer"),
    "launch.executor": (None, "local", "torchrun", "slurm"),
    "launch.changes": ("include", "refuse"),
    "prune.importance.batch_aggregation": ("l2", "mean", "var"),
    "prune.importance.seq_aggregation": ("mean", "l2", "var"),
    "prune.importance.layers": ("block_influence", "loss_increase", "contiguous_block"),
    "prune.search.embeddings": ("all", "once"),
    "prune.search.objective": ("parameters", "importance"),
}


def problems(config: Config) -> Iterator[str]:
    """Every problem as `key: found ..., allowed: ...`."""
    for keys, good, allowed in (
        (POSITIVE, lambda value: 0 < value < math.inf, "a positive number"),
        (NOT_NEGATIVE, lambda value: 0 <= value < math.inf, "zero or a positive number"),
        (POSITIVE_OR_NULL, lambda value: value is None or value > 0, "a positive number, or null"),
        (FRACTIONS, lambda value: 0 <= value < 1, "0 up to, not including, 1"),
        (("grpo.top_p",), lambda value: 0 < value <= 1, "above 0, up to 1"),
        (("grpo.group_size",), lambda value: value >= 2, "2 or more, to compare each reward with the others"),
        (("dpo.label_smoothing",), lambda value: 0 <= value < 0.5, "0 up to, not including, 0.5"),
        (
            ("distill.jensen_shannon_beta", "evaluate.harness.confidence"),
            lambda value: 0 < value < 1,
            "between 0 and 1, both excluded",
        ),
        (("evaluate.harness.shots",), lambda value: value is None or value >= 0, "zero or a positive number, or null"),
        (("run.name", "run.dir"), lambda value: value.strip(), "text that is not blank"),
    ):
        for key, value in view(config, keys).items():
            if not good(value):
                yield f"{key}: found {value!r}, allowed: {allowed}"
    for key, words in WORDS.items():
        value = view(config, [key])[key]
        if value not in words:
            known = [word for word in words if word]
            yield f"{key}: found {value!r}, allowed: {', '.join(known)}{nearest(value, known)}"
    for pair in config.distill.hidden_layers:
        if len(pair) != 2:
            yield f"distill.hidden_layers: found {pair}, allowed: pairs [student layer, teacher layer]"
    for key, source in text_sources(config):
        yield from _text_source(key, source)
    for key, source in chat_sources(config):
        yield from _chat_source(key, source)
    for index, model in enumerate(config.merge.models):
        if not model.path.strip():
            yield f"merge.models[{index}].path: found {model.path!r}, allowed: text that is not blank"
        if not 0 <= model.weight < math.inf:
            yield f"merge.models[{index}].weight: found {model.weight}, allowed: zero or a positive number"
    yield from _points(config)
    yield from _compared(config)
    for key, path in paths(config).items():
        if path.startswith("~"):  # no shell expands it here, and a directory of that name would be made
            yield f"{key}: found {path!r}, allowed: a path without ~, such as {path.replace('~', '$HOME', 1)!r}"


def _points(config: Config) -> Iterator[str]:
    if not config.benchmark.points:
        yield "benchmark.points: found none, allowed: one at least, such as {input_tokens: 512, output_tokens: 128}"
    for index, point in enumerate(config.benchmark.points):
        for name, least in {"input_tokens": 1, "output_tokens": 2, "concurrency": 1}.items():
            if (found := getattr(point, name)) < least:
                yield f"benchmark.points[{index}].{name}: found {found}, allowed: {least} or more"


def _compared(config: Config) -> Iterator[str]:
    taken = list(MODELS)
    for index, model in enumerate(config.evaluate.models):
        key = f"evaluate.models[{index}]"
        if not NAME.fullmatch(model.name) or model.name in taken:
            but = f"letters, digits, -, _ and . other than {', '.join(taken)}"
            yield f"{key}.name: found {model.name!r}, allowed: {but}"
        if not model.path.strip():
            yield f"{key}.path: found {model.path!r}, allowed: text that is not blank"
        taken.append(model.name)


def paths(config: Config) -> dict[str, str]:
    """Every path that the configuration names, by its key."""
    found = {"run.dir": config.run.dir, "model.source": config.model.source}
    harness = config.evaluate.harness
    found |= {"evaluate.harness.data_dir": harness.data_dir, "evaluate.harness.include_path": harness.include_path}
    found |= {"prune.importance.scores": config.prune.importance.scores, "prune.student": config.prune.student}
    found |= {f"{key}.path": source.path for key, source in (*text_sources(config), *chat_sources(config))}
    found |= {"swap_tokenizer.tokenizer": config.swap_tokenizer.tokenizer}
    found |= {f"tokenizers.compared.{name}": path for name, path in config.tokenizers.compared.items()}
    found |= {f"merge.models[{index}].path": model.path for index, model in enumerate(config.merge.models)}
    return found | {f"evaluate.models[{index}].path": model.path for index, model in enumerate(config.evaluate.models)}


def _text_source(key: str, source: TextSource) -> Iterator[str]:
    for name in ("path", "text_key"):
        if not (text := getattr(source, name)).strip():
            yield f"{key}.{name}: found {text!r}, allowed: text that is not blank"
    yield from _language(key, source.language)
    if source.weight is not None and not 0 < source.weight < math.inf:
        null = "" if isinstance(source, BlendSource) else ", or null"
        yield f"{key}.weight: found {source.weight}, allowed: a positive number{null}"


def _chat_source(key: str, source: ChatSource | PreferenceSource | TaskSource) -> Iterator[str]:
    if not source.path.strip():
        yield f"{key}.path: found {source.path!r}, allowed: text that is not blank"
    yield from _language(key, source.language)
    if isinstance(source, ChatSource):
        if source.format not in CHAT_FORMATS:
            allowed = f"{', '.join(CHAT_FORMATS)}{nearest(source.format, CHAT_FORMATS)}"
            yield f"{key}.format: found {source.format!r}, allowed: {allowed}"
        if hundredths(source.weight) is None:
            yield f"{key}.weight: found {source.weight}, allowed: hundredths from 0.01 to 1"
    if isinstance(source, TaskSource):
        yield from _rewards(key, source)


def _rewards(key: str, source: TaskSource) -> Iterator[str]:
    if not source.rewards:
        yield f"{key}.rewards: found none, allowed: one at least, such as {{function: bielik_nemo.align.rewards.maths}}"
    for index, term in enumerate(source.rewards):
        if not term.function.strip():
            path = "the dotted path of a function"
            yield f"{key}.rewards[{index}].function: found {term.function!r}, allowed: {path}"
        numbers = {"weight": term.weight} | {f"options.{name}": value for name, value in term.options.items()}
        for name, value in numbers.items():
            if not math.isfinite(value):
                yield f"{key}.rewards[{index}].{name}: found {value}, allowed: a finite number"


def _language(key: str, language: str) -> Iterator[str]:
    if language and not LANGUAGE.fullmatch(language):
        yield f"{key}.language: found {language!r}, allowed: a word such as pl or en-GB, or none"


def hundredths(weight: object) -> int | None:
    """A weight as 1 to 100 hundredths; None where it is not one."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= 1:
        return None
    nearest_one = round(100 * weight)
    return nearest_one if nearest_one and abs(100 * weight - nearest_one) < 1e-6 else None


def chat_sources(config: Config) -> Iterator[tuple[str, ChatSource | PreferenceSource | TaskSource]]:
    """Every source of conversations, preferences or tasks and its key, `sft.sources[0]` and so on."""
    every = {"sft": config.sft.sources, "dpo": config.dpo.sources, "grpo": config.grpo.sources}
    for key, sources in every.items():
        for index, source in enumerate(sources):
            yield f"{key}.sources[{index}]", source


def text_sources(config: Config) -> Iterator[tuple[str, TextSource]]:
    """Every source of text and its key, `data.sources[0]` and so on."""
    for key, sources in (("data", config.data.sources), ("prune.calibration", config.prune.calibration.sources)):
        for index, source in enumerate(sources):
            yield f"{key}.sources[{index}]", source
