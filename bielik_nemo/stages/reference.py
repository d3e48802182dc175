"""Run the model that DPO starts from once over all pairs, and keep what it says of their answers.

Two numbers for each pair: from these `dpo` trains without a second model in memory. Data-parallel ranks have different
pairs; an interrupted pass begins again, being a forward pass over what DPO goes through some three times and back.

Leaves `log_probs.safetensors`, of each dataset of `preferences` float32 `[pairs, 2]` (chosen and rejected, in nats,
summed over the tokens of the answer as cut to `dpo.seq_length`; NaN for a pair that is cut away), and `reference.json`,
what they are made of.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from bielik_nemo import artifacts, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.artifacts import Manifest
from bielik_nemo.config import Config
from bielik_nemo.engine import convert, distributed, model, reference_pass
from bielik_nemo.engine.preference import Preference
from bielik_nemo.engine.preference_data import Pairs
from bielik_nemo.errors import DataError
from bielik_nemo.stages import model_stage

LOG_PROBS = "log_probs.safetensors"
RECORD = "reference.json"
PARTS = ("train", "held_out")


def origin(config: Config, run_dir: Path) -> dict[str, Any]:
    """What references of this run are made of.

    Raises:
        DataError: a stage that they are made of has not finished.
    """
    before = model_stage(config, "dpo")
    found, data = (_manifest(run_dir / name) for name in (before, "preferences"))
    files = {name: entry for name, entry in data.outputs.items() if name.startswith(PARTS)}
    return {
        "model": f"{before} {found.fingerprint}",  # of what it was made of; the files depend on the layout
        "data": artifacts.content_digest(files),  # tokens, and so template and tokenizer too
        "seq_length": config.dpo.seq_length,
        "dtype": dtype(config),
    }


def dtype(config: Config) -> str:
    """That in which the model will be trained."""
    return "bfloat16" if config.trainer.precision == "bf16-mixed" else config.model.dtype


def _manifest(directory: Path) -> Manifest:
    found = Manifest.read(directory)
    if found is None:
        raise DataError(f"{directory}: has no manifest; run `bielik-nemo {directory.name}` first")
    return found


def check(config: Config, run_dir: Path) -> None:
    """Raise DataError where the references are not of this run's model, pairs and length."""
    path = run_dir / "reference" / RECORD
    found = artifacts.read_json(path)
    for name, wanted in origin(config, run_dir).items():
        if found.get(name) != wanted:
            raise DataError(
                f"{path}: {name}: found {found.get(name)!r}, allowed: {wanted!r}, of this run; run "
                "`bielik-nemo reference` again"
            )


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Measure all pairs.

    Raises:
        CheckpointError: the model cannot be loaded.
        DataError: there are no pairs.
        GateError: a log-probability is not finite.
    """
    here, before = run_dir / "reference", run_dir / model_stage(config, "dpo")
    shape = Architecture.from_json(before / "architecture.json")
    tp, pp = config.parallel.tp, config.parallel.pp
    preference = Preference("plain", 1.0, None, 0.0, 0.0, False, shape.vocab_size)
    parts = {part: Pairs(run_dir / "preferences" / part, config.dpo.seq_length) for part in PARTS}
    work = {part: reference_pass.batches(pairs, config.dpo.micro_batch_size) for part, pairs in parts.items()}
    wanted, found = origin(config, run_dir), {}
    with distributed.model_parallel(tp, pp, config.run.seed):
        megatron = model.build(model.gpt_config(shape, tp=tp, pp=pp, dtype=dtype(config)), shape)
        convert.load_stage(megatron, before, shape)
        copies, start = config.world_size // (tp * pp), time.monotonic()
        with ui.progress("reference", sum(-(-len(each) // copies) for each in work.values())) as advance:
            for part, pairs in parts.items():
                values = reference_pass.measure(megatron, preference, pairs, work[part], advance)
                found |= {f"{part}/{name}": each for name, each in pairs.split(values).items()}
        seconds = time.monotonic() - start
    counts = {part: len(pairs.usable) for part, pairs in parts.items()}
    tokens = sum(int(pairs.lengths[pairs.usable].sum()) for pairs in parts.values())
    if distributed.rank() == 0:
        save_file(found, here / LOG_PROBS)
        artifacts.write_json(here / RECORD, {**wanted, "pairs": counts, "tokens": tokens})
    ui.say(f"  {sum(counts.values()):,} pairs, {tokens:,} tokens, {tokens / seconds:.0f} tokens/s")
    return {"pairs": sum(counts.values()), "tokens": tokens, "tokens_per_second": tokens / seconds}
