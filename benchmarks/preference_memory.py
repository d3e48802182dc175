"""Memory of DPO-P with cached references, with a live reference, and of SFT of the same model on the same batches.

    python benchmarks/preference_memory.py --directory /scratch      # two minutes on a CPU

A random model of 34 million parameters learns from pairs of byte strings for two steps, each kind in a process of its
own. Peaks are the kernel's high-water mark of resident memory when the last step is done, before anything is saved.
Exits with 1 unless cached references take within a quarter of the model's weights what SFT takes, and a live one half
of them more at least.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bielik_nemo import pipeline
from bielik_nemo.config import Config, compose

KINDS = {"sft": "SFT", "cached": "DPO-P, cached references", "live": "DPO-P, live reference"}
STAGES = ["import_hf", "preferences", "reference"]


def configuration(work: Path) -> Config:
    """Two steps of four pairs in sequences of 256."""
    return compose(
        "",
        [
            f"run.dir={work}/run",
            f"model.source={work}/source",
            f"dpo.sources=[{{path: {work}/pairs.jsonl}}]",
            f"pipeline.stages=[{','.join(STAGES)},dpo]",
            *("dpo.seq_length=256", "dpo.global_batch_size=4", "dpo.max_steps=2", "dpo.warmup_steps=0"),
            *("chat.held_out_fraction=0.3", "chat.held_out_pairs=2", "export.parity_tokens=32"),
        ],
    )


def prepare(work: Path) -> None:
    """The model, the pairs, and what the model says of them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from bielik_nemo.data import tiny

    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
    LlamaForCausalLM(LlamaConfig(**shape, vocab_size=263, max_position_embeddings=256)).save_pretrained(work / "source")
    tiny.byte_tokenizer().save_pretrained(work / "source")
    draw = random.Random(0)
    with open(work / "pairs.jsonl", "w") as file:
        for _ in range(12):
            words = ["".join(draw.choices("abcdefgh ", k=12)) for _ in range(3)]
            file.write(json.dumps(dict(zip(("prompt", "chosen", "rejected"), words, strict=True))) + "\n")
    pipeline.run(configuration(work), STAGES)


def train(work: Path, kind: str) -> None:
    """Print the peak of one kind of training, in bytes."""
    import fiddle as fdl
    import lightning.pytorch as pl
    import nemo_run as run_
    import torch

    from bielik_nemo.architecture import Architecture
    from bielik_nemo.engine import checkpoint, distributed, forward, model
    from bielik_nemo.engine.preference import PreferenceModel
    from bielik_nemo.engine.sft import SFTModel
    from bielik_nemo.stages import dpo

    config = configuration(work)
    run_dir = Path(config.run.dir)
    shape = Architecture.from_json(run_dir / "import_hf" / "architecture.json")

    class Live(PreferenceModel):
        """Asks a second model in every step."""

        def configure_model(self) -> None:
            super().configure_model()
            reference = model.build(model.gpt_config(shape), shape)
            checkpoint.load(reference, run_dir / "import_hf" / "megatron")
            self.reference = [reference]  # in a list: not one of its modules

        def data_step(self, iterator: Any) -> dict[str, Any]:
            batch = super().data_step(iterator)
            wanted, places = [batch[key] for key in ("labels", "loss_mask", "answers")], batch["reference"].shape[1]
            (said,) = forward.passes(
                self.reference[0],
                [{key: batch[key] for key in ("tokens", "position_ids", "attention_mask")}],
                lambda logits, _: self.preference.log_probs(logits.transpose(0, 1), *wanted, places)[0],
            )
            return batch | {"reference": said.where(~batch["reference"].isnan(), torch.nan)}

    class Peak(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == trainer.max_steps:
                peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
                print(json.dumps({"peak": 1024 * int(peak[1]), "weights": 4 * shape.num_parameters()}), flush=True)

    work_ = dpo.build(config, run_dir)
    work_.log.explicit_log_dir = work_.log.ckpt.dirpath = str(work / kind)
    if kind == "live":
        fdl.update_callable(work_.model, Live)
    if kind == "sft":
        same = {"dtype": "float32", "seq_length": config.dpo.seq_length, "recompute": work_.model.recompute}
        work_.model = run_.Config(SFTModel, architecture=run_.Config(Architecture, **asdict(shape)), **same)
        work_.trainer.callbacks.pop()  # the gate of the first step
    work_.trainer.callbacks.insert(0, run_.Config(Peak))
    (run_dir / "dpo").mkdir(exist_ok=True)
    distributed.ensure_rendezvous()
    fdl.build(work_)()


def main() -> int:
    """Prepare, measure each kind, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="where to work")
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(Path(arguments.train[0]), arguments.train[1])
        return 0
    peaks, weights = {}, 0
    with tempfile.TemporaryDirectory(prefix="preference-", dir=arguments.directory) as name:
        prepare(Path(name))
        for kind, title in KINDS.items():
            command = [sys.executable, __file__, "--train", name, kind]
            done = subprocess.run(command, capture_output=True, text=True)
            lines = [line for line in done.stdout.splitlines() if line.startswith('{"peak"')]
            if not lines:
                print(done.stderr[-3000:], file=sys.stderr)
                return 1
            found = json.loads(lines[-1])
            peaks[kind], weights = found["peak"], found["weights"]
            more = (peaks[kind] - peaks["sft"]) / weights
            print(f"{title:<26}{peaks[kind] / 2**30:6.2f} GiB  {more:+.2f} of the model's {weights / 2**30:.2f} GiB")
    cached, live = ((peaks[kind] - peaks["sft"]) / weights for kind in ("cached", "live"))
    return 0 if abs(cached) < 0.25 and live - cached > 0.5 else 1


if __name__ == "__main__":
    sys.exit(main())
