"""Models side by side: on held-out text, answers, preference pairs and tasks, and in what they say.

Leaves `metrics.json`. All run as Megatron models: on text where the pipeline has `data`, on answers where it has
`chat`; on pairs where it has `reference`, that model and what came of it; on tasks where it has `grpo`; on benchmarks
where `evaluate.harness` names some (harness.py).
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fiddle as fdl

from bielik_nemo import artifacts, ui
from bielik_nemo.config import Config
from bielik_nemo.engine import against_reference, distributed
from bielik_nemo.engine.megatron_rollout import MegatronEngine
from bielik_nemo.engine.rollout import Sampling
from bielik_nemo.stages import dpo, evaluate_text, grpo, model_stage, sft
from bielik_nemo.stages.harness import Benchmarks
from bielik_nemo.stages.subject import Subject, subjects


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Measure all models."""
    metrics: dict[str, Any] = {}
    samples: list[dict[str, str]] = [{"prompt": prompt} for prompt in config.evaluate.prompts]
    benchmarks = Benchmarks(config, run_dir)
    with distributed.model_parallel(config.parallel.tp, 1, config.run.seed):
        models = subjects(config, run_dir)
        for subject in models:
            megatron = subject.load(config)
            measures = [_pairs]
            if subject.words().get_vocab() == models[0].words().get_vocab():  # answers and tasks are kept as tokens
                measures += [_answers, _tasks]
            found = evaluate_text.measure(config, run_dir, models[0], subject, megatron)
            for measure in measures:
                found |= measure(config, run_dir, subject, megatron)
            for key, value in found.items():
                metrics.setdefault(key, {})[subject.name] = value
            for prompt, text in _continued(config, subject, megatron):
                samples[prompt][subject.name] = text
            benchmarks.measure(subject, megatron)
            del megatron
            gc.collect()
    told = {key: metrics[key] for key in ("held_out_loss", "answer_loss", "preference", "tasks") if key in metrics}
    if "held_out_loss" in metrics:
        metrics["perplexity"] = {name: math.exp(loss) for name, loss in metrics["held_out_loss"].items()}
        metrics["tokens"] = sum(blocks[:, 1:].numel() for blocks in evaluate_text.held_out(config, run_dir).values())
    if distributed.rank() == 0:
        if compared := benchmarks.compared([model.name for model in models]):
            metrics["benchmarks"] = compared
            told["recovery"] = compared["mean"]
        artifacts.write_json(run_dir / "evaluate" / "metrics.json", metrics | {"samples": samples})
    return told


def _answers(config: Config, run_dir: Path, subject: Subject, megatron: Any) -> dict[str, Any]:
    if "chat" not in config.pipeline.stages:
        return {}
    with ui.progress(f"held-out answers, {subject.name}") as advance:
        loss, *parts = fdl.build(sft.held_out(config, run_dir)).measure(megatron, advance)
    named = zip(("answer_loss_by_source", "answer_loss_by_language"), parts, strict=True)
    return {"answer_loss": loss} | {key: part for key, part in named if len(part) > 1}


def _pairs(config: Config, run_dir: Path, subject: Subject, megatron: Any) -> dict[str, Any]:
    before = model_stage(config, "reference")
    if "reference" not in config.pipeline.stages or subject.stage not in (before, "dpo", "merge"):
        return {}
    pairs = fdl.build(dpo.held_out(config, run_dir, subject.shape.vocab_size))
    with ui.progress(f"held-out pairs, {subject.name}", len(pairs.batches())) as advance:
        reference = None if subject.stage == before else replace(subject, directory=run_dir / before).load(config)
        return {"preference": against_reference.measure(megatron, pairs, reference, advance)}


def _tasks(config: Config, run_dir: Path, subject: Subject, megatron: Any) -> dict[str, Any]:
    if "grpo" not in config.pipeline.stages:
        return {}
    wanted = grpo.held_out(config, run_dir, subject.shape.vocab_size)
    wanted.grader.rollouts = "megatron"  # the models differ in their shapes: another engine would have to be made anew
    tasks = fdl.build(wanted)
    with (
        ui.progress(f"held-out tasks, {subject.name}", len(tasks.chosen())) as advance,
        contextlib.closing(tasks.grader),
    ):
        return {"tasks": tasks.measure(megatron, advance)[0]}


def _continued(config: Config, subject: Subject, megatron: Any) -> Iterator[tuple[int, str]]:
    """The likeliest continuations of the prompts, by number, without the token that ends a text."""
    tokenizer = subject.words()
    prompts = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in config.evaluate.prompts]
    sampling = Sampling(config.evaluate.sample_tokens, (tokenizer.eos_token_id,), temperature=0)
    engine = MegatronEngine(megatron, subject.shape.vocab_size, tokenizer.decode, config.evaluate.batch_size)
    for prompt, (answer,) in engine.generate(prompts, range(len(prompts)), 1, sampling):
        yield prompt, tokenizer.decode(answer.ids[:-1] if answer.ended else answer.ids)
