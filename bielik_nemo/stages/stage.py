"""One stage of the pipeline: what it is made of, and the groups of settings that several stages read."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bielik_nemo.config import Config

Layout = tuple[int, int]
"""Tensor and pipeline parallel size."""


@dataclass(frozen=True)
class Stage:
    """One node of the graph.

    Attributes:
        name: of the stage, its module and its directory.
        keys: settings that decide the result.
        free: settings it also reads: layout, rhythm, what is only checked, and paths of files, whose content counts.
        needs: stages whose results it reads; `model` stands for the last of `MODEL_STAGES` before it in the pipeline,
            `source` for the one whose model is compressed, `distilled` for the last that distils it, `tokenizer` for
            the one whose tokenizer is the run's.
        uses: stages whose results it reads where they are part of the pipeline.
        outputs: files and directories in the stage's directory that are its result.
        scratch: what it needs until it is finished, such as checkpoints; removed once its manifest stands.
        resumed: what an interrupted attempt keeps besides, to go on from or to be read by a person.
        layout: tensor and pipeline parallel size it runs under.
        trains: whether it uses all data-parallel ranks and goes on from what is in `RESUMED` when it was interrupted.
        gpu: whether it computes on a GPU where there is one.
        version: raised when its code changes the result for the same settings.
        work: the task that it carries out, built; None: its own.
        changes: how that differs from its own, see recipes/task.py; decides the result like `keys`.
    """

    name: str
    keys: tuple[str, ...]
    outputs: tuple[str, ...]
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()
    resumed: tuple[str, ...] = ()
    layout: Callable[[Config], Layout] = lambda config: (1, 1)
    trains: bool = False
    gpu: bool = True
    version: int = 1
    work: Callable[[], Any] | None = None
    changes: Mapping[str, str] = field(default_factory=dict)

    def run(self, config: Config, run_dir: Path) -> dict[str, Any]:
        """Do the work on this rank; returns what it measured."""
        module = importlib.import_module(f"bielik_nemo.stages.{self.name}")
        return module.run(config, run_dir, self.work) if self.work else module.run(config, run_dir)

    def results(self, config: Config) -> tuple[str, ...]:
        """`outputs` under this configuration: of `prune`, by streaming or with a student that was cut elsewhere; of
        `grpo`, by NeMo-RL; of `release`, with other formats; with the snapshots that it leaves."""
        if self.name == "grpo" and config.grpo.engine == "nemo_rl":
            return "hf", "architecture.json", "rollouts"
        if self.name == "release":
            made = config.quantize.formats if "quantize" in config.pipeline.stages else []
            return (*self.outputs, *dict.fromkeys(name.partition(":")[0] for name in made))
        if self.name != "prune":
            return (*self.outputs, "snapshots") if self.snapshot_every(config) else self.outputs
        if config.prune.student:
            return "megatron", "architecture.json"
        return tuple("hf" if config.prune.streaming and name == "megatron" else name for name in self.outputs)

    def snapshot_every(self, config: Config) -> int | None:
        """Steps between two snapshots that this stage leaves; None: it leaves none."""
        return config.trainer.snapshot_every if "trainer.snapshot_every" in self.keys else None

    def world_size(self, config: Config) -> int:
        """Number of processes that the stage wants."""
        tp, pp = self.layout(config)
        return config.world_size if self.trains else tp * pp


def whole(config: Config) -> Layout:
    """The layout of the whole model as configured."""
    return config.parallel.tp, config.parallel.pp


RESUMED = ("checkpoints", "best", "snapshots", "metrics.jsonl", "nemo", "bad_batch.json")
"""What an interrupted training stage keeps in its directory."""

MIX = ("data.sources.language", "data.sources.weight", "data.language_weights")
"""What decides how the training sets are mixed."""

ADAM = ("optim.weight_decay", "optim.beta1", "optim.beta2", "optim.clip_grad", "optim.reference_tokens")
"""What a stage with rates of its own takes of `optim`."""

CRITERION = ("distill.weights", "distill.temperature", "distill.jensen_shannon_beta", "distill.hidden_layers")
"""What a student learns from its teacher."""

TRAINING = ("trainer.log_every", "trainer.validate_every", "trainer.checkpoint_every", "trainer.keep_last")
TRAINING += ("trainer.async_checkpoints", "trainer.max_loss_spike", "trainer.recompute")
"""What every stage that trains through NeMo reads and what does not decide its result."""
