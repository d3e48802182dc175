"""Everything that is compared between layouts, done by one process (rank) of them; the tests read what it leaves.

    ranks.py INPUTS OUT LAYOUT:PART,PART... LAYOUT:PART...

INPUTS holds the Hugging Face checkpoints, datasets and tokenizer of `conftest.inputs`; a LAYOUT is a key of `LAYOUTS`.
Every case leaves its result in OUT/LAYOUT/results.json as soon as it is there, and its files beside it. All layouts
start from the Megatron checkpoints of `single`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

LAYOUTS = {
    "single": (1, 1),
    "tp2": (2, 1),
    "pp2": (1, 2),
    "dp2": (1, 1),
    "pp4": (1, 4),
}  # tensor and pipeline parallel size
DIFFERS = ("tokens_per_second", "peak_memory_gib")
"""Metrics that two runs of the same do not share."""
STEPS, SEQ_LENGTH, BATCH = 6, 32, 4
BLEND = {"train": "17", "other": "7"}  # training set -> samples of STEPS * BATCH
HELD_OUT = 10 * SEQ_LENGTH  # tokens
EOD = 260  # the byte tokenizer's end of text
PRUNINGS = {  # name -> target; `all` cuts every axis at once
    "ffn": {"ffn_hidden_size": 48},
    "hidden": {"hidden_size": 48},
    "heads": {"num_attention_heads": 2},
    "layers": {"num_layers": 2},
    "all": {"ffn_hidden_size": 56, "hidden_size": 40, "num_attention_heads": 2, "num_layers": 2},
}
TAUGHT = (("sampled", "sampled", 50, 1.0), ("top_k", "top_k", 7, 2.0), ("separate", "top_k", 7, 1.0))
LAYER_SAMPLES = 5  # calibration samples on which losses without layers are measured
IMPORTANCES = {  # name -> settings of prune.importance
    f"{batch},{seq}": {"batch_aggregation": batch, "seq_aggregation": seq}
    for batch in ("mean", "l2", "var")
    for seq in ("mean", "l2", "var")
}
IMPORTANCES["loss"] = {"layers": "loss_increase", "layer_samples": LAYER_SAMPLES}
IMPORTANCES["blocks"] = {"layers": "contiguous_block", "layer_samples": LAYER_SAMPLES, "block_sizes": [3, 1]}
ALL = {"attention": True, "ffn": True, "blocks": True}
NONE = dict.fromkeys(ALL, False)
COMPENSATIONS = {  # name -> cut, layers that stay (no gap crosses a pipeline boundary), parts that are refitted
    "ffn": ({"ffn_hidden_size": 48}, [0, 1, 2, 3], NONE | {"ffn": True}),
    "attention": ({"num_attention_heads": 2}, [0, 1, 2, 3], NONE | {"attention": True}),
    "blocks": ({"num_layers": 3}, [0, 2, 3], NONE | {"blocks": True}),
    "all": (PRUNINGS["all"], [0, 2], ALL),
}
MIXTURE = {"forward_kl": 1.0, "reverse_kl": 0.5, "jensen_shannon": 2.0, "cross_entropy": 0.25}
HIDDEN_WEIGHT, HIDDEN_LAYERS = 0.5, [[0, 1], [1, 2]]  # a pair on each of two pipeline stages
MIXED = {"uneven": True, "weights": MIXTURE, "hidden_layers": HIDDEN_LAYERS}
KEPT = {"forward_kl": 1.0, "cross_entropy": 0.5}  # a loss for which samples of the teacher are enough
PREFERENCE = {  # a bielik loss, whose penalty is at work for some pairs
    "loss": "bielik",
    "beta": 0.1,
    "beta_rejected": None,
    "penalty": 2.5,
    "label_smoothing": 0.0,
    "length_normalized": False,
}
PROMPTS = [[5], [1, 200, 7, 7, 30, 99, 100, 12], [3, 4, 5]]
NEW_TOKENS, ANSWER_TOKENS = 40, 24  # greedy, sampled
STOP_IDS = (9, 27, 64, 77, 81, 120, 150, 160, 201, 230, 250)  # a sampled answer meets one of them now and then
ROLLOUTS = {  # name -> kind, temperature, batch size, with KV cache
    "all at once": ("llama", 1.0, 64, True),
    "one by one": ("llama", 1.0, 1, True),
    "without cache": ("llama", 1.0, 64, False),
    "cooler": ("llama", 0.7, 64, True),
    "cooler without cache": ("llama", 0.7, 4, False),
    "window": ("window", 1.0, 64, True),
}
READ_AT_A_TIME = 96  # tokens; the last texts of both are longer
SCORED = [(f"Pytanie {number}?", answer) for number in range(3) for answer in (" A", " B", " tak, w domu")]
SCORED += [("Kot ", "mruczy"), ("", "Ala ma kota"), ("Zażółć gęślą jaźń. " * 8, "Koniec.")]
WHOLE = ["Ala", "Wpłynąłem na suchego przestwór oceanu. " * 6]
WRITTEN = [("Ala ma", {"until": ["\n"], "max_gen_toks": 12}), ("Dwa", {"until": [], "max_gen_toks": 8})]
WRITTEN += [(text, {"until": ["e", " "], "max_gen_toks": 24}) for text in ("Litwo! Ojczyzno", "Kto?", "x" * 120)]
HARNESS = {"loglikelihood": SCORED, "loglikelihood_rolling": [(text,) for text in WHOLE], "generate_until": WRITTEN}
"""What the harness asks, by its method, as its `Instance` has it."""


def calibration(inputs: Path):
    """6 samples of 32 tokens."""
    from bielik_nemo.engine import datasets

    return datasets.blocks(inputs / "train", SEQ_LENGTH, 6 * SEQ_LENGTH)[:, :-1]


class Layout:
    """One layout, its inputs and its results."""

    def __init__(self, inputs: Path, out: Path, name: str):
        self.inputs, self.root, self.name = inputs, out, name
        self.out = out / name
        self.tp, self.pp = LAYOUTS[name]
        self.out.mkdir(parents=True, exist_ok=True)
        before = self.out / "results.json"
        self.results: dict = json.loads(before.read_text()) if before.is_file() else {}

    def record(self, case: str, value: object) -> None:
        from bielik_nemo.engine import distributed

        self.results[case] = value
        if distributed.rank() == 0:
            (self.out / "results.json").write_text(json.dumps(self.results))

    @contextlib.contextmanager
    def layout(self):
        from bielik_nemo.engine import distributed

        _meet()
        with distributed.model_parallel(self.tp, self.pp):
            yield

    def architecture(self, kind: str):
        from bielik_nemo.architecture import Architecture

        return Architecture.from_hf(self.inputs / kind)

    def megatron(self, kind: str) -> Path:
        return self.root / "single" / "megatron" / kind

    def model(self, a, directory: Path | None = None):
        from bielik_nemo.engine import checkpoint, model

        built = model.build(model.gpt_config(a, tp=self.tp, pp=self.pp, seq_length=128), a)
        if directory is not None:
            checkpoint.load(built, directory)
        return built

    def convert(self) -> None:
        """Of every kind: from Hugging Face with parity, a Megatron checkpoint, its export."""
        from bielik_nemo.engine import checkpoint, convert, model, parity

        with self.layout():
            for directory in sorted(p.parent for p in self.inputs.glob("*/config.json")):
                kind, a = directory.name, self.architecture(directory.name)
                dtype = "bfloat16" if kind == "bf16" else "float32"
                megatron = self.model(a)
                convert.load_hf(megatron, directory, a)
                model.round_parameters(megatron, dtype)
                tokens = parity.probe_tokens(a.vocab_size, 256, seed=0)
                found = parity.check(megatron, directory, a, tokens, dtype, tolerance=1e-4)
                checkpoint.save(model.cast(megatron, dtype), self.out / "megatron" / kind)
                again = self.model(a, self.out / "megatron" / kind)
                shard = 1e-4 if kind in ("sharded", "tied") else 1.0
                convert.save_hf(again, self.out / "hf" / kind, a, directory, max_shard_gib=shard, dtype=dtype)
                self.record(f"parity {kind}", found["max_abs_logit_diff"])

    def reshard(self) -> None:
        """Of the checkpoints that two ranks wrote: the tensors that differ here from the Hugging Face checkpoint's."""
        from bielik_nemo.engine import convert
        from bielik_nemo.engine.hf_reader import SafetensorsReader

        with self.layout():
            for directory in sorted(self.root.glob("?p2/megatron/*")):
                origin, kind = directory.parts[-3], directory.name
                if origin == self.name:
                    continue
                a, reader = self.architecture(kind), SafetensorsReader(self.inputs / kind)
                differing = []
                for name, found in convert.gathered_hf_tensors(self.model(a, directory), a):
                    if len(found) and not found.equal(reader.read(name, 0, 0, len(found)).float()):
                        differing.append(name)
                self.record(f"reshard {origin} {kind}", differing)

    def forward(self) -> None:
        """Held-out loss."""
        from bielik_nemo.engine import datasets, forward

        blocks = datasets.blocks(self.inputs / "held_out" / "text", SEQ_LENGTH, HELD_OUT)
        with self.layout():
            for kind in ("llama", "tied", "window"):
                a = self.architecture(kind)
                megatron = self.model(a, self.megatron(kind))
                self.record(f"held_out {kind}", forward.held_out_loss(megatron, blocks, batch_size=4))

    def rollout(self) -> None:
        """The likeliest answers of some kinds; sampled ones, with what the forward pass of training says of them."""
        from bielik_nemo.engine.megatron_rollout import MegatronEngine
        from bielik_nemo.engine.rollout import Sampling

        def answers(engine: MegatronEngine, samples: int, sampling: Sampling) -> list:
            return [found for _, found in sorted(engine.generate(PROMPTS, [11, 12, 13], samples, sampling))]

        with self.layout():
            models = {kind: (self.architecture(kind), self.megatron(kind)) for kind in ("llama", "tied", "window")}
            models = {kind: (a.vocab_size, self.model(a, directory)) for kind, (a, directory) in models.items()}
            for kind, (vocab_size, megatron) in models.items():
                found = answers(
                    MegatronEngine(megatron, vocab_size, str, 2), 1, Sampling(NEW_TOKENS, (), temperature=0)
                )
                self.record(f"greedy {kind}", [answer.ids for (answer,) in found])
            for name, (kind, temperature, batch_size, cache) in ROLLOUTS.items():
                vocab_size, megatron = models[kind]
                engine = MegatronEngine(megatron, vocab_size, str, batch_size, cache)
                found = answers(engine, 3, Sampling(ANSWER_TOKENS, STOP_IDS, temperature=temperature, seed=1))
                trained = [
                    [_trained_log_probs(megatron, vocab_size, prompt, answer.ids, temperature) for answer in group]
                    for prompt, group in zip(PROMPTS, found, strict=True)
                ]
                self.record(f"rollout {name}", {"answers": found, "trained": trained})
            self.record("handed over", [name for kind in ("llama", "tied") for name in self.differing(kind, models)])

    def harness(self) -> None:
        """What lm-evaluation-harness asks a model, in batches of 4."""
        from lm_eval.api.instance import Instance
        from transformers import AutoTokenizer

        from bielik_nemo.engine.harness import MegatronLM

        tokenizer = AutoTokenizer.from_pretrained(self.inputs / "tokenizer")
        with self.layout():
            for kind in ("llama", "tied"):
                a = self.architecture(kind)
                lm = MegatronLM(self.model(a, self.megatron(kind)), tokenizer, a.vocab_size, READ_AT_A_TIME, 4)
                for ask, arguments in HARNESS.items():
                    asked = [Instance(ask, {}, each, i, ("", i, 1)) for i, each in enumerate(arguments)]
                    self.record(f"{ask} {kind}", getattr(lm, ask)(asked))

    def differing(self, kind: str, models: dict) -> list[str]:
        """Tensors handed to another engine that are not the Hugging Face checkpoint's, on any rank."""
        from bielik_nemo.engine import distributed, vllm_rollout
        from bielik_nemo.engine.hf_reader import SafetensorsReader, expected_shapes

        a, reader = self.architecture(kind), SafetensorsReader(self.inputs / kind)
        found = dict(vllm_rollout.hf_tensors(models[kind][1], a))
        wrong = set(found) ^ set(expected_shapes(a))
        wrong |= {name for name, each in found.items() if not each.equal(reader.read(name, 0, 0, len(each)).float())}
        return sorted(distributed.merged(dict.fromkeys(wrong)))

    def minitron(self) -> None:
        """Scores of one model, and what they cut it to."""
        from bielik_nemo.engine import convert, distributed, forward, minitron
        from bielik_nemo.prune.kept import choose, kept_layers

        a = self.architecture("llama")
        batches = list(calibration(self.inputs).split(2))
        with self.layout():
            megatron = self.model(a, self.megatron("llama"))
            scores = minitron.score(megatron, a, lambda m: forward.run(m, batches, lambda _: None))
            if distributed.rank() == 0:
                scores.save(self.out / "scores.safetensors")
            for name, axes in PRUNINGS.items():
                target = a.pruned_to(**axes)
                kept = choose(scores, a, target, kept_layers(scores, target.num_layers))
                pruned = minitron.prune(self.model(a, self.megatron("llama")), a, target, kept)
                convert.save_hf(pruned, self.out / "pruned" / name, target)
                self.record(f"pruned {name}", "done")

    def compensate(self) -> None:
        """Cuts with compensation, by the scores of `minitron`."""
        from bielik_nemo.config_prune import Compensation
        from bielik_nemo.engine import compensation, convert
        from bielik_nemo.engine.scores import Scores
        from bielik_nemo.prune.kept import choose

        a = self.architecture("llama")
        batches = list(calibration(self.inputs).split(2))
        with self.layout():
            scores = Scores.load(self.out / "scores.safetensors")
            for name, (axes, layers, parts) in COMPENSATIONS.items():
                target = a.pruned_to(**axes)
                kept = choose(scores, a, target, layers)
                for directory, settings in (
                    ("plain", Compensation()),
                    ("compensated", Compensation(**parts, rotation=name == "all")),
                ):
                    cut, errors = compensation.cut(
                        lambda: self.model(a, self.megatron("llama")), a, target, kept, batches, settings
                    )
                    convert.save_hf(cut, self.out / directory / name, target)
                self.record(f"compensated {name}", errors)

    def importance(self) -> None:
        """Scores of one model under every definition, from uneven batches."""
        from bielik_nemo.config_prune import Importance
        from bielik_nemo.engine import distributed, importance

        a = self.architecture("llama")
        with self.layout():
            for name, settings in IMPORTANCES.items():
                built = self.model(a, self.megatron("llama"))
                tokens, key = calibration(self.inputs), {"model": "llama"}
                found = importance.measure(built, a, tokens, Importance(**settings), batch_size=4, key=key)
                if distributed.rank() == 0:
                    found.save(self.out / f"importance {name}.safetensors")
                self.record(f"importance {name}", "done")

    def teach(self) -> None:
        """What a teacher said about the samples of all steps, in shards of five samples: 50 draws, the best 7."""
        import fiddle as fdl

        from bielik_nemo.engine import teacher_pass
        from bielik_nemo.engine.teacher_cache import Contents

        a, counts = self.architecture("llama"), (STEPS * BATCH, SEQ_LENGTH, self.architecture("llama").vocab_size)
        digests = {"teacher": "a", "tokenizer": "b", "data": "c"}
        with self.layout():
            teacher = self.model(a, self.megatron("llama"))
            for name, kind, n, temperature in TAUGHT:
                here, config = self.out / f"teacher {name}", self.config()
                config.data.separate_documents = name == "separate"
                data = fdl.build(self.data(config, self.out / "teacher index"))
                data.build(STEPS, 1, 0, 0)
                wanted = Contents(
                    kind,
                    n,
                    temperature,
                    *counts,
                    1,
                    "float32",
                    **digests,
                    separate_documents=config.data.separate_documents,
                    samples_per_shard=5,
                )
                shards = teacher_pass.to_do(here, wanted)
                # A micro-batch that divides neither shards nor samples, and another under every layout.
                size = {"single": 2, "tp2": 3, "pp2": 4, "dp2": 5}[self.name]
                teacher_pass.fill(teacher, data._train_ds, here, wanted, shards, size)
                self.record(f"bytes per token {name}", teacher_pass.finish(here, wanted))
        self.record("teach", "done")

    def config(self):
        """Settings of all training runs."""
        from bielik_nemo.config import Config
        from bielik_nemo.engine import distributed

        config = Config()
        config.parallel.tp, config.parallel.pp = self.tp, self.pp
        config.cluster.devices_per_node = distributed.world_size()
        config.data.seq_length, config.data.global_batch_size = SEQ_LENGTH, BATCH
        config.data.micro_batch_size = 2
        config.trainer.max_steps, config.trainer.log_every, config.trainer.checkpoint_every = STEPS, 1, 2
        config.trainer.validate_every, config.data.held_out_tokens = 3, HELD_OUT
        # Clipping is at work in every step; the norm that is reported is the one before it.
        config.optim.warmup_steps, config.optim.lr, config.optim.clip_grad = 2, 1e-3, 0.3
        return config

    def data(self, config, index: Path, cache: Path | None = None):
        """The data module of all training runs, with a teacher's cache or without."""
        import fiddle as fdl

        from bielik_nemo.engine import training
        from bielik_nemo.engine.cached_distillation import CachedDataModule

        blend = [word for name, weight in BLEND.items() for word in (weight, str(self.inputs / name))]
        data = training.data(config, blend, self.inputs / "held_out", self.inputs / "tokenizer", index)
        if cache is not None:
            fdl.update_callable(data, CachedDataModule)
            data.teacher_cache = str(cache)
        return data

    def distill(
        self,
        name: str,
        kind: str,
        micro_batch_size: int = 2,
        steps: int = STEPS,
        kill_at: int = 0,
        stop_at: int = 0,
        async_checkpoints: bool = False,
        temperature: float = 2.0,
        cached: str = "",
        recompute: str = "none",
        uneven: bool = False,
        weights: dict[str, float] | None = None,
        hidden_layers: list[list[int]] | None = None,
        separate: bool = False,
    ) -> None:
        """A few steps; leaves metrics.jsonl, and with one process the first global batch.

        Where the masks are uneven, what counts of a sequence is as many tokens as its first label says, modulo 33.
        """
        from bielik_nemo.engine import cpu, distributed

        cpu.enable()
        import fiddle as fdl
        import nemo_run as run
        import torch

        from bielik_nemo.architecture import Architecture
        from bielik_nemo.engine import cached_distillation, checkpoint, distillation, snapshots, training
        from bielik_nemo.engine.criterion import Criterion

        batches: list = []
        parent = cached_distillation.CachedDistillationModel if cached else distillation.DistillationModel

        class Recording(parent):
            def data_step(self, iterator):
                batch = super().data_step(iterator)
                if uneven and batch["loss_mask"] is not None:
                    first = batch["labels"][:, :1] if batch["tokens"] is None else batch["tokens"][:, 1:2]
                    batch["loss_mask"] = (torch.arange(SEQ_LENGTH) < first % (SEQ_LENGTH + 1)).float()
                if self.training:
                    batches.append({key: value.clone() for key, value in batch.items() if value is not None})
                return batch

        here = self.out / name
        here.mkdir(exist_ok=True)
        config = self.config()
        config.data.micro_batch_size, config.trainer.max_steps = micro_batch_size, steps
        config.trainer.async_checkpoints = async_checkpoints
        config.data.separate_documents = separate
        shapes = {
            role: run.Config(Architecture, **asdict(self.architecture(source)))
            for role, source in (("teacher", kind), ("student", f"{kind}_student"))
        }
        held_out = training.held_out(config, self.inputs / "held_out")
        criterion = run.Config(
            Criterion,
            weights=weights or {"forward_kl": 1.0},
            temperature=1.0 if cached == "sampled" else temperature,
            beta=0.5,
            vocab_size=self.architecture(kind).vocab_size,
        )
        model = run.Config(
            Recording,
            student=shapes["student"],
            criterion=criterion,
            dtype="float32",
            seq_length=SEQ_LENGTH,
            recompute=recompute,
        )
        if cached:
            model.kind = cached
        else:
            model.teacher, model.teacher_checkpoint = shapes["teacher"], str(self.megatron(kind))
            model.gate = run.Config(distillation.TeacherGate, held_out, 20.0, None, 0.02)
        start = self.megatron(f"{kind}_student")
        if hidden_layers:
            model.hidden_weight, model.hidden_layers = HIDDEN_WEIGHT, hidden_layers
            model.student_megatron, start = str(start), None
        task = run.Partial(
            distillation.train,
            model=model,
            data=self.data(config, here / "index", self.root / "single" / f"teacher {cached}" if cached else None),
            trainer=training.trainer(config, here / "metrics.jsonl", held_out),
            log=training.logger(config, here),
            resume=training.resume(start),
            optim=training.optimizer(config),
        )
        if name == "resumed":
            task.trainer.callbacks.append(run.Config(snapshots.Snapshots, str(here / "snapshots"), 3))
        if kill_at:
            task.trainer.callbacks.append(run.Config(_signaller(), step=kill_at, number=signal.SIGKILL))
        if stop_at and distributed.rank() == distributed.world_size() - 1:
            task.trainer.callbacks.append(run.Config(_signaller(), step=stop_at, number=signal.SIGUSR1))
        _meet()
        distributed.ensure_rendezvous()
        try:
            checkpoint.save(fdl.build(task)(), here / "megatron")
        finally:
            distributed.reset_parallel_state()
        if distributed.world_size() == 1:
            first = batches[: BATCH // micro_batch_size]
            torch.save({key: torch.cat([b[key] for b in first]) for key in first[0]}, here / "batch.pt")
        self.record(f"distill {name}", "done")

    def pretrain(self) -> None:
        """Continued pre-training of the teacher; leaves metrics.jsonl."""
        from bielik_nemo.engine import cpu, distributed

        cpu.enable()
        import fiddle as fdl
        import nemo_run as run

        from bielik_nemo.architecture import Architecture
        from bielik_nemo.engine import distillation, pretraining, training

        here, config = self.out / "pretrain", self.config()
        here.mkdir(exist_ok=True)
        a = run.Config(Architecture, **asdict(self.architecture("llama")))
        task = run.Partial(
            distillation.train,
            model=run.Config(pretraining.PretrainingModel, a, dtype="float32", seq_length=SEQ_LENGTH),
            data=self.data(config, here / "index"),
            trainer=training.trainer(
                config, here / "metrics.jsonl", training.held_out(config, self.inputs / "held_out")
            ),
            log=training.logger(config, here),
            resume=training.resume(self.megatron("llama")),
            optim=training.optimizer(config),
        )
        _meet()
        distributed.ensure_rendezvous()
        try:
            fdl.build(task)()
        finally:
            distributed.reset_parallel_state()
        self.record("distill pretrain", "done")

    def tuned(self, name: str, kind: str, begins: str = "", steps: int = STEPS, **settings: object) -> None:
        """The stage sft in a run directory of its own; settings are `sft`'s."""
        from bielik_nemo import artifacts
        from bielik_nemo.engine import distributed
        from bielik_nemo.stages import sft

        here, config = self.out / name, self.config()
        config.pipeline.stages = ["import_hf", "prune", "chat", "sft"]
        ready = here / "ready"
        if distributed.rank() == 0 and not ready.exists():
            (here / "sft").mkdir(parents=True)
            (here / "chat").symlink_to(self.inputs / "chat")
            for stage, model in (("import_hf", kind), ("prune", begins or kind)):
                (here / stage).mkdir()
                (here / stage / "megatron").symlink_to(self.megatron(model))
                artifacts.write_json(here / stage / "architecture.json", asdict(self.architecture(model)))
            (here / "import_hf" / "tokenizer").symlink_to(self.inputs / "tokenizer")
            ready.touch()
        while not ready.exists():
            time.sleep(0.05)
        own = {"seq_length": SEQ_LENGTH, "global_batch_size": BATCH, "micro_batch_size": 2, "max_steps": steps}
        own |= {"warmup_steps": 2 if steps > 2 else 0, "lr": 1e-3, "weight_decay": 0.1}
        config.sft = replace(config.sft, **own | settings)
        config.chat.held_out_tokens, config.distill.gate_max_loss = 60, 20.0
        _meet()
        found = sft.run(config, here)
        self.record(f"sft {name}", {key: value for key, value in found.items() if key not in DIFFERS})

    def packed(self) -> None:
        """All conversations in four full sequences are the first batch: every token's weight counts."""
        self.tuned("packed", "llama", normalization="weights")

    def sft(self) -> None:
        """That, and beside a teacher with another rate for each batch, from a model that was cut."""
        self.packed()
        taught = {"forward_kl": 0.5, "normalization": "tokens", "reference_tokens": 10}
        self.tuned("taught", "llama", "llama_student", steps=2, **taught)

    def lora(self) -> None:
        """Only adapters learn, of a model whose embedding is tied; in one process once more from the fourth step on.

        Records how far the logits of what is left are from those of the frozen model with its adapters, and from the
        frozen model's own, relative to the largest.
        """
        import shutil

        from bielik_nemo.config_align import LoRA
        from bielik_nemo.engine import checkpoint, forward, lora

        settings = LoRA(rank=8, alpha=16)
        self.tuned("lora", "tied", lora=settings)
        here, a = self.out / "lora" / "sft", self.architecture("tied")
        with self.layout():
            adapted = self.model(a, self.megatron("tied"))
            lora.add(adapted, settings, seed=0)
            checkpoint.load(adapted, here / "checkpoints" / "step=5")
            models = adapted, self.model(a, here / "megatron"), self.model(a, self.megatron("tied"))
            said, left, before = (forward.logits(model, calibration(self.inputs), a.vocab_size) for model in models)
            for name, other in (("merged", said), ("learnt", before)):
                self.record(f"lora {name}", float((left - other).abs().max() / left.abs().max()))
        if self.name == "single":
            metrics = here / "metrics.jsonl"
            shutil.copyfile(metrics, here.parent / "whole.jsonl")
            shutil.rmtree(here / "checkpoints" / "step=5")
            self.tuned("lora", "tied", lora=settings)
        self.record("lora", "done")

    def unpacked(self) -> None:
        """The same conversations with a sequence each; and again with as many tokens to divide by as are trained."""
        alone = {"packing": False, "global_batch_size": 12, "steps": 1}
        self.tuned("unpacked", "llama", normalization="weights", **alone)
        self.tuned("by tokens", "llama", steps=1)
        self.tuned("adapted", "llama", steps=2, normalization="weights", reference_tokens=10)

    def preference(self):
        """The loss of the runs on preferences."""
        import nemo_run as run

        from bielik_nemo.engine.preference import Preference

        return run.Config(Preference, vocab_size=self.architecture("llama").vocab_size, **PREFERENCE)

    def refer(self) -> None:
        """What a model says of all pairs that is not quite the one which learns; one process makes it."""
        import fiddle as fdl
        import torch
        from safetensors.numpy import save_file

        from bielik_nemo.engine import checkpoint, distributed, reference_pass
        from bielik_nemo.engine.preference_data import Pairs

        a, found = self.architecture("llama"), {}
        with self.layout():
            model = self.model(a, self.megatron("llama" if self.name == "single" else "reference"))
            if self.name == "single":
                random = torch.Generator().manual_seed(0)
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter += 0.02 * torch.randn(parameter.shape, generator=random)
                checkpoint.save(model, self.megatron("reference"))
            for part in ("train", "held_out"):
                pairs = Pairs(self.inputs / "preferences" / part, SEQ_LENGTH)
                work = reference_pass.batches(pairs, 2)
                values = reference_pass.measure(model, fdl.build(self.preference()), pairs, work)
                found |= {f"{part}/{name}": each for name, each in pairs.split(values).items()}
            if distributed.rank() == 0:
                save_file(found, self.out / "log_probs.safetensors")
        self.record("refer", "done")

    def prefer(self) -> None:
        self.optimise("prefer")

    def online(self) -> None:
        """Beside a live reference, and in sequences of their own for some pairs."""
        self.optimise("online", live=True)

    def refused(self) -> None:
        """References of another model: no step is made."""
        from bielik_nemo.errors import GateError

        try:
            self.optimise("refused", gate=0.02)
        except GateError as error:
            self.record("refused", str(error))

    def optimise(self, name: str, live: bool = False, gate: float = 0.0) -> None:
        """Preference optimisation of `llama`, measured on the first pairs of those that it learns from.

        Leaves metrics.jsonl, and with one process the first step's batch.
        """
        from bielik_nemo.engine import cpu, distributed

        cpu.enable()
        import fiddle as fdl
        import nemo_run as run
        import torch

        from bielik_nemo.architecture import Architecture
        from bielik_nemo.engine import checkpoint, distillation, forward, model, preference, training
        from bielik_nemo.engine.held_out_pairs import HeldOutPairs
        from bielik_nemo.engine.preference_data import PreferenceData, PreferenceDataset, plan

        batches, a = [], self.architecture("llama")

        class Recording(preference.PreferenceModel):
            def configure_model(self) -> None:
                super().configure_model()
                if live and not hasattr(self, "live"):
                    frozen = model.build(model.gpt_config(a, seq_length=128), a)
                    checkpoint.load(frozen, here.parent / "megatron" / "reference")
                    self.live = [frozen]  # a list: not one of its modules

            def data_step(self, iterator):
                batch = super().data_step(iterator)
                if live:
                    batch["reference"] = self.said(batch)
                if self.training:
                    batches.append(batch)
                return batch

            def said(self, batch):
                places = batch["reference"].shape[1]
                given = [batch[key] for key in ("labels", "loss_mask", "answers")]
                (found,) = forward.passes(
                    self.live[0],
                    [{key: batch[key] for key in ("tokens", "position_ids", "attention_mask")}],
                    lambda logits, _: self.preference.log_probs(logits.transpose(0, 1), *given, places)[0],
                )
                return found.where(~batch["reference"].isnan(), torch.nan)

        here, config = self.out / name, self.config()
        here.mkdir(exist_ok=True)
        log_probs = str(self.root / "single" / "log_probs.safetensors")
        config.data.micro_batch_size = 1
        drawn = {"directory": str(self.inputs / "preferences" / "train"), "seq_length": SEQ_LENGTH, "batch": BATCH}
        drawn |= {"seed": 2, "unit": config.data_parallel_size, "epochs": 1.0, "max_steps": STEPS}
        config.data.global_batch_size = plan(**drawn).sequences
        dataset = run.Config(PreferenceDataset, log_probs=log_probs, **drawn)
        data = training.samples(config, dataset, self.inputs, self.inputs / "tokenizer")
        fdl.update_callable(data, PreferenceData)
        measured = run.Config(
            HeldOutPairs,
            directory=drawn["directory"],
            log_probs=log_probs,
            seq_length=SEQ_LENGTH,
            pairs=30,
            batch_size=2,
            preference=self.preference(),
            sources=["pl.jsonl", "en.jsonl"],
            languages=["pl", "en"],
        )
        task = run.Partial(
            distillation.train,
            model=run.Config(
                Recording,
                architecture=run.Config(Architecture, **asdict(a)),
                preference=self.preference(),
                dtype="float32",
                seq_length=SEQ_LENGTH,
            ),
            data=data,
            trainer=training.trainer(config, here / "metrics.jsonl", measured),
            log=training.logger(config, here),
            resume=training.resume(self.megatron("llama")),
            optim=training.optimizer(config),
        )
        if gate:
            task.trainer.callbacks.append(run.Config(preference.ReferenceGate, gate))
        _meet()
        distributed.ensure_rendezvous()
        try:
            fdl.build(task)()
        finally:
            distributed.reset_parallel_state()
        if distributed.world_size() == 1:
            first = batches[: config.data.global_batch_size]
            torch.save({key: torch.cat([b[key] for b in first]) for key in first[0]}, here / "batch.pt")
        self.record(f"distill {name}", "done")

    def policy(self) -> None:
        self.rewarded("policy")

    def policies(self) -> None:
        """Other normalisations; all groups; an update for each rollout; sequences that hold one answer each."""
        self.rewarded("constant", steps=1, normalization="constant", scale_advantages=False, kl=0.0)
        self.rewarded("tokens", steps=1, normalization="tokens")
        self.rewarded("unfiltered", steps=1, filter_groups=False)
        self.rewarded("alone", steps=2, seq_length=14, micro_batch_size=4)

    def dying(self) -> None:
        self.rewarded("revived", kill_at=4)

    def revived(self) -> None:
        self.rewarded("revived")

    def mismatched(self) -> None:
        """What samples is not what trains: no update is made."""
        from bielik_nemo.engine.policy import Policy
        from bielik_nemo.errors import GateError

        said = Policy.log_probs
        Policy.log_probs = lambda *arguments: said(*arguments) - 0.05
        try:
            self.rewarded("mismatched")
        except GateError as error:
            self.record("mismatched", str(error))
        finally:
            Policy.log_probs = said

    def failing(self) -> None:
        """All rewards fail, of which 1 % may: the answers are kept."""
        from bielik_nemo.errors import GateError

        try:
            self.rewarded("failing", reward="verdicts.raising")
        except GateError as error:
            self.record("failing", str(error))

    def rewarded(
        self, name: str, steps: int = STEPS, kill_at: int = 0, reward: str = "verdicts.verdicts", **settings: object
    ) -> None:
        """The stage grpo of `llama` in a run directory of its own, held to a model that differs a little.

        Settings are `grpo`'s: of each rollout's 4 groups of 4 answers come 4 updates, of two groups each, with
        checkpoints between them. Leaves metrics.jsonl, and with one process the first step's batch.
        """
        import shutil

        import fiddle as fdl
        import nemo_run as run
        import torch

        from bielik_nemo import artifacts
        from bielik_nemo.config_grpo import RewardTerm, TaskSource
        from bielik_nemo.engine import distributed, policy
        from bielik_nemo.stages import grpo

        batches = []

        class Recording(policy.PolicyModel):
            def data_step(self, iterator):
                batches.append((self.trainer.global_step, super().data_step(iterator)))
                return batches[-1][1]

        here, config = self.out / name, self.config()
        config.pipeline.stages = ["import_hf", "tasks", "grpo"]
        ready = here / "ready"
        if distributed.rank() == 0 and not ready.exists():
            for stage in ("import_hf", "tasks", "grpo"):
                (here / stage).mkdir(parents=True)
            (here / "import_hf" / "megatron").symlink_to(self.megatron("llama"))
            (here / "import_hf" / "tokenizer").symlink_to(self.inputs / "tokenizer")
            artifacts.write_json(here / "import_hf" / "architecture.json", asdict(self.architecture("llama")))
            for side in ("train", "held_out"):
                rows = [
                    {
                        "source": i % 2,
                        "place": f"{side}:{i}",
                        "ids": list(range(10 * i + 1, 11 * i + 2)),
                        "prompt": str(i),
                    }
                    | {"answer": "flat" if i % 2 else "", "language": "", "tools": []}
                    for i in range(6)
                ]
                artifacts.write_text(here / "tasks" / f"{side}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            summary = {"sources": [{"name": "one"}, {"name": "two"}], "stop_ids": list(STOP_IDS)}
            artifacts.write_json(here / "tasks" / "summary.json", summary)
            ready.touch()
        while not ready.exists():
            time.sleep(0.05)
        own = {"seq_length": SEQ_LENGTH, "prompts_per_rollout": 4, "global_batch_size": 2, "passes_per_rollout": 2}
        own |= {"group_size": 4, "micro_batch_size": 1, "max_steps": steps, "lr": 3e-4, "kl": 0.1, "clip_low": 0.05}
        own |= {"max_prompt_tokens": 6, "max_answer_tokens": 8, "rollout_batch_size": 8, "recompute": "none"}
        rewards = [RewardTerm(reward)]
        own["sources"] = [TaskSource(source, "", rewards) for source in ("one", "two")]
        config.grpo = replace(config.grpo, **own | settings)
        config.grpo.rewards.workers = 1
        config.chat.held_out_tasks = 6
        work = grpo.build(config, here)
        fdl.update_callable(work.model, Recording)
        loop = work.trainer.callbacks[-1]
        # What it is held to, as a stage's directory.
        loop.reference = str(here / "held_to")
        if distributed.rank() == 0 and not (here / "held_to").exists():
            (here / "held_to").mkdir()
            (here / "held_to" / "megatron").symlink_to(self.megatron("reference"))
        if kill_at:
            work.trainer.callbacks.append(run.Config(_signaller(), kill_at, signal.SIGKILL))
        _meet()
        distributed.ensure_rendezvous()
        try:
            fdl.build(work)()
        finally:
            distributed.reset_parallel_state()
        shutil.copyfile(here / "grpo" / "metrics.jsonl", here / "metrics.jsonl")
        first = [batch for step, batch in batches if step == 0]
        if distributed.world_size() == 1 and first:
            torch.save({key: torch.cat([b[key] for b in first]) for key in first[0]}, here / "batch.pt")
        self.record(f"distill {name}", "done")

    def train(self) -> None:
        """Forward KL on all tokens, and a mixture on some, of which every micro-batch has another number."""
        self.distill("llama", "llama")
        self.distill("tied", "tied", **MIXED)

    def splits(self) -> None:
        for size in (1, 4):
            self.distill(f"split{size}", "tied", micro_batch_size=size, steps=1, **MIXED)

    def recomputed(self) -> None:
        for recompute in ("selective", "full"):
            self.distill(recompute, "llama", steps=2, recompute=recompute)

    def separated(self) -> None:
        self.distill("separate", "llama", micro_batch_size=1, steps=1, separate=True)

    def cached(self) -> None:
        """The same from the teacher's samples that one process left."""
        self.distill("cached", "llama", cached="sampled", weights=KEPT)

    def compared(self) -> None:
        """A live teacher at the temperature of the samples, another split into micro-batches, the most likely ids."""
        self.distill("live", "llama", temperature=1.0, weights=KEPT)
        self.distill("cached split", "llama", micro_batch_size=1, steps=1, cached="sampled", weights=KEPT)
        self.distill("cached top_k", "llama", steps=1, cached="top_k")

    def stopped(self) -> None:
        """A signal to the last rank alone, during the third step, which is not one that is saved."""
        from bielik_nemo import stopping
        from bielik_nemo.errors import Stopped

        with stopping.listening():
            try:
                self.distill("stopped", "llama", stop_at=3)
            except Stopped as stopped:
                self.record("stopped", str(stopped))

    def killed(self) -> None:
        self.distill("resumed", "llama", kill_at=6)

    def resumed(self) -> None:
        self.distill("resumed", "llama")
        self.distill("stopped", "llama")

    def moved(self) -> None:
        """From the checkpoint that two ranks left which shared every layer."""
        self.distill("moved", "llama")

    def damaged(self) -> None:
        """One byte of the newest checkpoint is another one."""
        file = next((self.out / "damaged" / "checkpoints" / "step=3" / "weights").glob("*.distcp"))
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        self.distill("damaged", "llama")

    def killed_saving(self) -> None:
        """SIGKILL while another process writes the second checkpoint."""
        from megatron.core.dist_checkpointing.strategies.async_utils import TemporalAsyncCaller

        schedule, saves = TemporalAsyncCaller.schedule_async_call, []

        def die(caller, request) -> None:
            schedule(caller, request)
            saves.append(request)
            if len(saves) == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        TemporalAsyncCaller.schedule_async_call = die
        self.distill("asynchronous", "llama", async_checkpoints=True)

    def asynchronous(self) -> None:
        self.distill("asynchronous", "llama", async_checkpoints=True)


def _trained_log_probs(model, vocab_size: int, prompt: list[int], answer: list[int], temperature: float) -> list[float]:
    """Of each token of an answer, by the forward pass of training; the same on every rank."""
    import torch

    from bielik_nemo.engine import forward
    from bielik_nemo.engine.model import tp_group
    from bielik_nemo.losses.log_probs import token_log_probs

    tokens = torch.tensor([prompt + answer])

    def consume(logits):
        scaled = logits.transpose(0, 1) / temperature
        return token_log_probs(scaled, tokens[:, 1:].T, vocab_size=vocab_size, tp_group=tp_group())

    found = forward.run(model, [tokens[:, :-1]], consume)
    value = found[0].contiguous() if found else torch.empty(tokens.shape[1] - 1, 1)
    return forward.from_last_stage(value)[-len(answer) :, 0].tolist()


def _signaller() -> type:
    """A callback that sends its process a signal in a step; SIGKILL ends it as a machine failure would."""
    import lightning.pytorch as pl

    class SignalAt(pl.Callback):
        def __init__(self, step: int, number: int):
            self.step, self.number = step, number

        def on_train_batch_start(self, trainer, *_) -> None:
            if trainer.global_step == self.step - 1:
                os.kill(os.getpid(), self.number)

    return SignalAt


def main(inputs: str, out: str, *work: str) -> None:
    for layout, parts in (item.split(":") for item in work):
        here = Layout(Path(inputs), Path(out), layout)
        for part in parts.split(","):
            getattr(here, part)()


_stores: list = []  # kept open


def _meet() -> None:
    """Give the next process group a store of its own on rank 0: torchrun's serves only one."""
    from torch.distributed import TCPStore

    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    agent = os.environ.setdefault("TORCHRUN_PORT", os.environ["MASTER_PORT"])
    announcements = TCPStore(os.environ["MASTER_ADDR"], int(agent), is_master=False)
    key = f"meeting/{len(_stores)}"
    if os.environ["RANK"] == "0":
        _stores.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
        announcements.set(key, str(_stores[-1].port))
    else:
        _stores.append(announcements)
    os.environ["MASTER_PORT"] = announcements.get(key).decode()


if __name__ == "__main__":
    main(*sys.argv[1:])
