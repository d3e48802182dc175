"""Everything that is compared between layouts, done under one of them; torchrun starts it, the tests read what it leaves.

    ranks.py INPUTS OUT TP PP PART...

INPUTS holds the Hugging Face checkpoints, datasets and tokenizer of `conftest.inputs`. Every case leaves its result in
OUT/results.json as soon as it is there, and its files under OUT. Cases that start from Megatron checkpoints take those of
INPUTS/megatron, which the part `convert` writes where there are none yet: all layouts start from the same.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

STEPS, SEQ_LENGTH, BATCH = 6, 32, 4
PRUNINGS = {  # name -> target; `all` cuts every axis at once
    "ffn": {"ffn_hidden_size": 48},
    "hidden": {"hidden_size": 48},
    "heads": {"num_attention_heads": 2},
    "layers": {"num_layers": 2},
    "all": {"ffn_hidden_size": 56, "hidden_size": 40, "num_attention_heads": 2, "num_layers": 2},
}


class Layout:
    """One layout, its inputs and its results."""

    def __init__(self, inputs: Path, out: Path, tp: int, pp: int):
        self.inputs, self.out, self.tp, self.pp = inputs, out, tp, pp
        self.results: dict = {}
        out.mkdir(parents=True, exist_ok=True)

    def record(self, case: str, value: object) -> None:
        from bielik_nemo.engine import distributed

        self.results[case] = value
        if distributed.rank() == 0:
            (self.out / "results.json").write_text(json.dumps(self.results))

    def architecture(self, kind: str):
        from bielik_nemo.architecture import Architecture

        return Architecture.from_hf(self.inputs / kind)

    def model(self, a, checkpoint_directory: Path | None = None):
        from bielik_nemo.engine import checkpoint, model

        built = model.build(model.gpt_config(a, tp=self.tp, pp=self.pp, seq_length=128), a)
        if checkpoint_directory is not None:
            checkpoint.load(built, checkpoint_directory)
        return built

    def convert(self) -> None:
        """Per kind: Hugging Face -> this layout, parity, a Megatron checkpoint; another layout's checkpoint -> Hugging Face."""
        from bielik_nemo.engine import checkpoint, convert, distributed, model, parity

        for directory in sorted(p.parent for p in self.inputs.glob("*/config.json")):
            kind, a = directory.name, self.architecture(directory.name)
            dtype = "bfloat16" if kind == "bf16" else "float32"
            with distributed.model_parallel(self.tp, self.pp):
                megatron = self.model(a)
                convert.load_hf(megatron, directory, a)
                model.round_parameters(megatron, dtype)
                tokens = parity.probe_tokens(a.vocab_size, 256, seed=0)
                found = parity.check(megatron, directory, a, tokens, dtype, tolerance=1e-4)
                own, shared = self.out / "megatron" / kind, self.inputs / "megatron" / kind
                checkpoint.save(model.cast(megatron, dtype), own)
                if not shared.is_dir():
                    checkpoint.save(megatron, shared)
                for origin in (own, shared):
                    again = self.model(a, origin)
                    target = self.out / f"hf_{origin.parent.parent.name}" / kind
                    shard = 1e-4 if kind in ("sharded", "tied") else 1.0
                    convert.save_hf(again, target, a, directory, max_shard_gib=shard, dtype=dtype)
            self.record(f"parity {kind}", found["max_abs_logit_diff"])

    def forward(self) -> None:
        """Held-out loss and, with one pipeline stage, greedy continuation."""
        from bielik_nemo.engine import datasets, distributed, forward, generate

        blocks = datasets.blocks(self.inputs / "held_out", SEQ_LENGTH, 10 * SEQ_LENGTH)
        for kind in ("llama", "tied", "window"):
            with distributed.model_parallel(self.tp, self.pp):
                a = self.architecture(kind)
                megatron = self.model(a, self.inputs / "megatron" / kind)
                self.record(f"held_out {kind}", forward.held_out_loss(megatron, blocks, batch_size=4))
                if self.pp == 1:
                    prompts = [[5], [1, 200, 7, 7, 30, 99, 100, 12]]
                    self.record(f"greedy {kind}", [generate.greedy(megatron, p, 40, a.vocab_size) for p in prompts])

    def minitron(self) -> None:
        """Scores of one model, and what they cut it to."""
        from bielik_nemo.engine import convert, datasets, distributed, forward, minitron

        a, weights = self.architecture("llama"), self.inputs / "megatron" / "llama"
        calibration = datasets.blocks(self.inputs / "train", SEQ_LENGTH, 6 * SEQ_LENGTH)[:, :-1]
        with distributed.model_parallel(self.tp, self.pp):
            batches = list(calibration.split(2))
            scores = minitron.score(self.model(a, weights), a, lambda m: forward.run(m, batches, lambda _: None))
            if distributed.rank() == 0:
                scores.save(self.out / "scores.safetensors")
        for name, axes in PRUNINGS.items():
            target = a.pruned_to(**axes)
            with distributed.model_parallel(self.tp, self.pp):
                pruned = minitron.prune(self.model(a, weights), a, target, scores)
                convert.save_hf(pruned, self.out / "pruned" / name, target)
        self.record("minitron", len(scores.layers))

    def distill(self, name: str, teacher: str, student: str, micro_batch_size: int = 2, steps: int = STEPS, kill_at: int = 0) -> None:
        """A few steps; leaves metrics.jsonl, and under one rank the first global batch."""
        import fiddle as fdl
        import nemo_run as run
        import torch

        from bielik_nemo.config import Config
        from bielik_nemo.engine import cpu, distributed

        cpu.enable()
        from bielik_nemo.engine import checkpoint, distillation, training

        class Recording(distillation.DistillationModel):
            def data_step(self, iterator):
                batch = super().data_step(iterator)
                if self.training:
                    batches.append({key: value.clone() for key, value in batch.items() if value is not None})
                return batch

        batches: list = []
        here = self.out / name
        here.mkdir(exist_ok=True)
        config = Config()
        config.parallel.tp, config.parallel.pp = self.tp, self.pp
        config.cluster.devices_per_node = distributed.world_size()
        config.data.seq_length, config.data.global_batch_size = SEQ_LENGTH, BATCH
        config.data.micro_batch_size = micro_batch_size
        config.trainer.max_steps, config.trainer.log_every, config.trainer.checkpoint_every = steps, 1, 2
        config.trainer.validate_every, config.trainer.validate_batches = 3, 1
        config.optim.warmup_steps, config.optim.lr = 2, 1e-3
        gate = distillation.TeacherGate(str(self.inputs / "held_out"), SEQ_LENGTH, 8 * SEQ_LENGTH, 4, 20.0, None, 0.02)
        trainer = training.trainer(config, here / "metrics.jsonl")
        if kill_at:
            trainer.callbacks.append(run.Config(killer(), step=kill_at))
        task = run.Partial(
            distillation.train,
            model=run.Config(
                Recording,
                student=run.Config(type(self.architecture(student)), **asdict(self.architecture(student))),
                teacher=run.Config(type(self.architecture(teacher)), **asdict(self.architecture(teacher))),
                teacher_checkpoint=str(self.inputs / "megatron" / teacher),
                gate=gate,
                temperature=2.0,
                dtype="float32",
                seq_length=SEQ_LENGTH,
            ),
            data=training.data(
                config, self.inputs / "train", self.inputs / "held_out", self.inputs / "tokenizer", here / "index"
            ),
            trainer=trainer,
            log=training.logger(config, here),
            resume=training.resume(self.inputs / "megatron" / student),
            optim=training.optimizer(config),
        )
        distributed.ensure_rendezvous()
        try:
            trained = fdl.build(task)()
            checkpoint.save(trained, here / "megatron")
        finally:
            distributed.reset_parallel_state()
        if distributed.world_size() == 1:
            first = batches[: BATCH // micro_batch_size]
            torch.save({key: torch.cat([b[key] for b in first]) for key in first[0]}, here / "batch.pt")
        self.record(f"distill {name}", "done")


def killer() -> type:
    """A callback that kills its process as a machine failure would: no handler, no flush."""
    import lightning.pytorch as pl

    class KillAt(pl.Callback):
        def __init__(self, step: int):
            self.step = step

        def on_train_batch_end(self, trainer, *_) -> None:
            if trainer.global_step == self.step:
                os.kill(os.getpid(), signal.SIGKILL)

    return KillAt


def main(inputs: str, out: str, tp: str, pp: str, *parts: str) -> None:
    layout = Layout(Path(inputs), Path(out), int(tp), int(pp))
    for part in parts:
        if part == "distill":
            layout.distill("llama", "llama", "llama_student")
            layout.distill("tied", "tied", "tied_student")
        elif part == "killed":
            layout.distill("resumed", "llama", "llama_student", kill_at=5)
        elif part == "resumed":
            layout.distill("resumed", "llama", "llama_student")
        elif part == "splits":
            for size in (1, 4):
                layout.distill(f"split{size}", "llama", "llama_student", micro_batch_size=size, steps=1)
        else:
            getattr(layout, part)()


if __name__ == "__main__":
    main(*sys.argv[1:])
