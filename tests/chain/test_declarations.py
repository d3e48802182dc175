"""Every stage reads only the settings that it declares, and declares only what it reads.

The fingerprint of a stage is made of its declared keys: one that is read but not declared would let an old result pass
for a new one.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bielik_nemo.config import CHAIN, Config
from bielik_nemo.config_prune import TextSource
from bielik_nemo.engine import speed
from bielik_nemo.engine.speed_process import Process, Timing
from bielik_nemo.stages import GRAPH, Stage

RUN = [*CHAIN, "tokenizers", "swap_tokenizer", "adapt", "pretrain", "teacher", "distill_long", "merge", "quantize"]
RUN += ["chat", "sft", "preferences", "reference", "dpo", "tasks", "grpo", "benchmark", "release"]

LONGER = (
    "distill_long.seq_length=256",
    "distill_long.global_batch_size=1",
    "distill_long.max_steps=1",
    "distill_long.warmup_steps=0",
)


class InNoTime(Process):
    """Answers as fast as it is asked."""

    def __init__(self, name: str, *settings: Any):
        self.name = name

    def measure(self, *load: Any) -> Timing:
        return Timing(0.5, 1.0, 0)

    def __exit__(self, *error: object) -> None:
        pass


def recording(section: Any, read: set[str], prefix: str = "") -> Any:
    """A copy of a configuration that notes the dotted name of every value that is read; in a list, the list's name."""
    values = {field.name: getattr(section, field.name) for field in fields(section)}
    inner = {name: recording(value, read, f"{prefix}{name}.") for name, value in values.items() if is_dataclass(value)}
    for name, value in values.items():
        if isinstance(value, list) and any(map(is_dataclass, value)):
            inner[name] = [recording(each, read, f"{prefix}{name}.") for each in value]

    def note(self: Any, name: str) -> Any:
        if name == "__dict__":  # vars() reads all of them
            read.update(prefix + each for each in values if each not in inner)
        elif name in values and name not in inner:
            read.add(prefix + name)
        return object.__getattribute__(self, name)

    def plain(self: Any) -> None:
        object.__setattr__(self, "__class__", type(section))

    copy = replace(section, **inner)
    # What is made of it with `replace` has other values: reading those is not reading the configuration's.
    methods = {"__getattribute__": note, "__post_init__": plain}
    copy.__class__ = make_dataclass("Recording", [], bases=(type(section),), namespace=methods)
    return copy


def declared(key: str, keys: tuple[str, ...]) -> bool:
    """Whether a key or one of the sections around it is among `keys`."""
    return any(f"{key}.".startswith(f"{name}.") for name in keys)


def test_recording_notes_values_and_not_sections():
    read: set[str] = set()
    config = recording(Config(), read)
    assert config.world_size == 1 and config.optim is not None
    assert read == {"cluster.nodes", "cluster.devices_per_node", "parallel.tp", "parallel.pp", "parallel.cp"}


def test_recording_notes_values_in_lists():
    read: set[str] = set()
    original = Config()
    original.data.sources = [TextSource("a"), TextSource("b", language="pl")]
    config = recording(original, read)
    assert read == set() and len(config.data.sources) == 2 and read == set()
    assert config.data.sources[1].language == "pl" and read == {"data.sources.language"}


@pytest.fixture(scope="module")
def reads(chain, aligned) -> dict[str, set[str]]:
    """What each stage reads in a whole run, in others with `teacher` and with alignment, and pruning in other ways."""
    read: dict[str, set[str]] = {name: set() for name in RUN}
    run = Stage.run

    def recorded(stage: Stage, config: Config, run_dir: Path) -> dict[str, Any]:
        return run(stage, recording(config, read[stage.name]), run_dir)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "run", recorded)
        run_dir = chain.empty("reads")
        chain.run(run_dir)
        with pytest.MonkeyPatch.context() as timed:
            timed.setattr(speed, "Process", InNoTime)
            chain.run(run_dir, f"evaluate.models=[{{name:other,path:'{chain.source}'}}]", stages=["benchmark"])
        chain.run(run_dir, "quantize.formats=[fp8]", "quantize.calibration_samples=2", stages=["quantize"])
        chain.run(run_dir, "release.licence=MIT", stages=["release"])
        chain.run(run_dir, "pretrain.max_steps=2", "pretrain.warmup_steps=0", stages=["pretrain"])
        chain.run(run_dir, *LONGER, stages=["distill_long"])
        chain.run(run_dir, "adapt.max_steps=2", "adapt.warmup_steps=0", stages=["tokenizers", "adapt"])
        swap = ("swap_tokenizer.tokenizer=builtin:tiny_bpe", "swap_tokenizer.tokens=100000")
        chain.run(run_dir, *swap, stages=["swap_tokenizer"])
        others = f"evaluate.models=[{{name:other,path:'{chain.source}'}}]"
        asked = ("evaluate.harness.tasks=[polish_corrections]", "evaluate.harness.limit=4")
        chain.run(run_dir, others, *asked, stages=["evaluate"])
        stages = f"pipeline.stages=[{','.join(CHAIN[:4])},teacher,distill]"
        training_text = "prune.calibration.sources=[]"
        chain.run(run_dir, stages, training_text)
        chain.run(run_dir, training_text, "prune.streaming=true", stages=["prune"])
        refit = ("prune.compensation.ffn=true", "prune.compensation.samples=8")
        chain.run(run_dir, training_text, *refit, stages=["prune"])
        student = f"prune.student='{chain.finished}/export/hf'"
        chain.run(run_dir, training_text, student, "prune=none", stages=["prune"])
        merging = ("pipeline.stages=[import_hf,merge]", f"merge.models=[{{path:'{chain.source}'}}]")
        chain.run(run_dir, *merging, stages=["merge"])
        teacher = ("sft.forward_kl=0.5", "distill.gate_max_loss=9")  # which has not learned to answer
        aligned.run(aligned.empty("reads"), "sft.max_steps=2", "dpo.max_steps=2", "grpo.max_steps=2", *teacher)
    return read


@pytest.mark.parametrize("name", RUN)
def test_a_stage_reads_only_what_it_declares(name: str, reads):
    stage = GRAPH[name]
    known = stage.keys + stage.free
    undeclared = [key for key in sorted(reads[name]) if not declared(key, known)]
    # Of an empty list only the name is read; declared are the keys of its items.
    assert [key for key in undeclared if not any(each.startswith(f"{key}.") for each in known)] == []


@pytest.mark.parametrize("name", RUN)
def test_a_stage_reads_all_that_it_declares(name: str, reads):
    stage = GRAPH[name]
    assert [key for key in stage.keys + stage.free if not any(declared(read, (key,)) for read in reads[name])] == []


@pytest.mark.parametrize("name", RUN)
def test_nothing_is_declared_twice(name: str):
    stage = GRAPH[name]
    assert [key for key in stage.keys if declared(key, stage.free)] == []
    assert [key for key in stage.free if declared(key, stage.keys)] == []
