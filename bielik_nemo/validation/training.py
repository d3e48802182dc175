"""What must fit together in training: schedules, batches, layouts, the mix of texts, the parts of the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict

from bielik_nemo.config import Config
from bielik_nemo.config_align import LoRA
from bielik_nemo.config_training import LIVE_ONLY


def problems(config: Config) -> Iterator[str]:
    """Every problem as `key: found ..., allowed: ...`."""
    yield from _schedules(config)
    yield from _layout(config)
    yield from _mixture(config)
    yield from _distillation(config)
    if "sft" in config.pipeline.stages:
        yield from _sft(config)
    if not {"reference", "dpo"}.isdisjoint(config.pipeline.stages):
        yield from _dpo(config)
    if "grpo" in config.pipeline.stages:
        yield from _grpo(config)


def _schedules(config: Config) -> Iterator[str]:
    schedules = {"optim": (config.optim, "trainer.max_steps", config.trainer.max_steps)}
    for name in ("adapt", "pretrain", "distill_long"):
        if name in config.pipeline.stages:
            phase = getattr(config, name)
            schedules[name] = (phase, f"{name}.max_steps", phase.max_steps)
    for name in ("sft", "dpo", "grpo"):  # where the epochs decide, the stage knows the steps once it has the data
        if name in config.pipeline.stages and (steps := getattr(config, name).max_steps):
            schedules[name] = (getattr(config, name), f"{name}.max_steps", steps)
    for name, (schedule, key, steps) in schedules.items():
        warmup, decay = schedule.warmup_steps, schedule.decay_steps
        if schedule.min_lr > schedule.lr:
            yield f"{name}.min_lr: found {schedule.min_lr}, allowed: 0 to {name}.lr={schedule.lr}"
        if warmup >= steps:
            yield f"{name}.warmup_steps: found {warmup}, allowed: less than {key}={steps}"
        elif schedule.schedule == "wsd" and not 1 <= decay <= steps - warmup:
            allowed = f"1 to {steps - warmup}, the steps after warm-up, with {name}.schedule=wsd"
            yield f"{name}.decay_steps: found {decay}, allowed: {allowed}"


def _layout(config: Config) -> Iterator[str]:
    """What the devices ask for."""
    parallel, batches = config.parallel, {"data": config.data}
    for name in ("distill_long", "sft"):  # dpo and grpo make their sequences fit
        if name in config.pipeline.stages:
            batches[name] = getattr(config, name)
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
    for name in ("distill_long", "sft", "dpo", "grpo"):
        if name in config.pipeline.stages:
            lengths[name] = getattr(config, name).seq_length
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
    for name in ("adapt", "pretrain"):
        if name in config.pipeline.stages and (own := getattr(config, name).language_weights):
            yield from _languages(config, f"{name}.language_weights", own)


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


def _sft(config: Config) -> Iterator[str]:
    own, gpus = config.sft, config.cluster.gpu_memory_gib
    if own.packing and config.parallel.cp > 1:
        yield f"sft.packing: found True, allowed: False with parallel.cp={config.parallel.cp}"
    if own.packing and gpus and own.micro_batch_size > 1:
        # Transformer Engine takes the conversations' lengths instead of a mask, of one sequence at a time.
        yield f"sft.micro_batch_size: found {own.micro_batch_size}, allowed: 1 with sft.packing"
    largest = (2**31 - 1) // 100  # Megatron counts in 32 bits, and weights in hundredths
    if own.normalization == "weights" and own.global_batch_size * own.seq_length > largest:
        yield (
            f"sft.global_batch_size: found {own.global_batch_size} sequences of {own.seq_length}, allowed: at most "
            f"{largest:,} tokens with sft.normalization=weights"
        )
    if own.lora.rank:
        yield from _lora(config, own.lora)
    if own.forward_kl and own.reference_tokens and own.normalization == "weights":
        yield "sft.normalization: found 'weights', allowed: tokens with sft.forward_kl and sft.reference_tokens"


def _dpo(config: Config) -> Iterator[str]:
    """What cached references and the training on them ask for: whole answers, kept apart in packed sequences."""
    own, cp = config.dpo, config.parallel.cp
    if cp > 1:
        yield f"parallel.cp: found {cp}, allowed: 1 with reference or dpo in pipeline.stages, which need whole answers"
    if config.cluster.gpu_memory_gib and own.micro_batch_size > 1:
        # Transformer Engine takes the conversations' lengths instead of a mask, of one sequence at a time.
        yield f"dpo.micro_batch_size: found {own.micro_batch_size}, allowed: 1 on GPUs, where its sequences are packed"


def _grpo(config: Config) -> Iterator[str]:
    """What sampling from the model that is trained, and packing its answers, asks for."""
    own, parallel = config.grpo, config.parallel
    here = own.engine == "megatron"
    if here and parallel.cp > 1:
        yield f"parallel.cp: found {parallel.cp}, allowed: 1 with grpo in pipeline.stages, which needs whole answers"
    if here and parallel.sequence_parallel:
        # Megatron's static inference takes one token at a time, which cannot be shared out (0.15.3).
        yield "parallel.sequence_parallel: found True, allowed: False with grpo in pipeline.stages, which samples"
    if here and config.cluster.gpu_memory_gib and own.micro_batch_size > 1:
        yield f"grpo.micro_batch_size: found {own.micro_batch_size}, allowed: 1 on GPUs, where its sequences are packed"
    if here and own.rollouts == "vllm":  # whose log-probabilities are then those among the words that are left
        if own.top_p < 1:
            yield f"grpo.top_p: found {own.top_p}, allowed: 1 with grpo.rollouts=vllm"
        if own.top_k:
            yield f"grpo.top_k: found {own.top_k}, allowed: 0 with grpo.rollouts=vllm"
    if own.prompts_per_rollout % own.global_batch_size:
        yield (
            f"grpo.prompts_per_rollout: found {own.prompts_per_rollout}, allowed: multiples of "
            f"grpo.global_batch_size={own.global_batch_size}"
        )
    longest = own.max_prompt_tokens + own.max_answer_tokens
    if own.seq_length < longest:
        yield (
            f"grpo.seq_length: found {own.seq_length}, allowed: at least {longest} = grpo.max_prompt_tokens + "
            "grpo.max_answer_tokens"
        )
    if own.clip_high < own.clip_low:
        yield f"grpo.clip_high: found {own.clip_high}, allowed: at least grpo.clip_low={own.clip_low}"


def _lora(config: Config, lora: LoRA) -> Iterator[str]:
    targets, tp = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"), config.parallel.tp
    if lora.rank % tp:
        yield f"sft.lora.rank: found {lora.rank}, allowed: 0, or multiples of parallel.tp={tp}"
    if not lora.targets or set(lora.targets) - set(targets):
        yield f"sft.lora.targets: found {lora.targets}, allowed: some of {', '.join(targets)}"
    if config.sft.forward_kl:
        yield f"sft.forward_kl: found {config.sft.forward_kl}, allowed: 0 with sft.lora.rank={lora.rank}"
