"""The stages: what each reads, needs and does. This module is the graph, light enough for the command line.

A stage's module has `run(config, run_dir) -> metrics`; it works in `run_dir/<stage>`, on every rank, and may read only
the settings that it declares here. `keys` decide its result and so its fingerprint; `free` settings (layout, rhythm)
do not, so that changing them neither repeats nor restarts finished work.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
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
            `source` for the one whose model is compressed, `distilled` for the last that distils it.
        uses: stages whose results it reads where they are part of the pipeline.
        outputs: files and directories in the stage's directory that are its result.
        scratch: what it needs until it is finished, such as checkpoints; removed once its manifest stands.
        resumed: what an interrupted attempt keeps besides, and goes on from.
        layout: tensor and pipeline parallel size it runs under.
        trains: whether it uses all data-parallel ranks and goes on from what is in `RESUMED` when it was interrupted.
        version: raised when its code changes the result for the same settings.
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
    version: int = 1

    def run(self, config: Config, run_dir: Path) -> dict[str, Any]:
        """Do the work on this rank; returns what it measured."""
        return importlib.import_module(f"bielik_nemo.stages.{self.name}").run(config, run_dir)

    def results(self, config: Config) -> tuple[str, ...]:
        """`outputs` under this configuration: of `prune`, by streaming or with a student that was cut elsewhere."""
        if self.name != "prune":
            return self.outputs
        if config.prune.student:
            return "megatron", "architecture.json"
        return tuple("hf" if config.prune.streaming and name == "megatron" else name for name in self.outputs)

    def world_size(self, config: Config) -> int:
        """Number of processes that the stage wants."""
        tp, pp = self.layout(config)
        return config.world_size if self.trains else tp * pp


def _whole(config: Config) -> Layout:
    return config.parallel.tp, config.parallel.pp


MODEL_STAGES = ("import_hf", "pretrain", "prune", "distill", "distill_long")
"""Stages that leave a model in `<stage>/megatron`, or `<stage>/hf`, and its shape in `<stage>/architecture.json`."""

RESUMED = ("checkpoints", "best", "metrics.jsonl", "nemo", "bad_batch.json")
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

GRAPH = {
    stage.name: stage
    for stage in (
        Stage(
            "import_hf",
            keys=("model.dtype",),
            outputs=("megatron", "architecture.json", "tokenizer", "parity.json"),
            scratch=("source",),
            free=(
                "model.source",
                "model.shape",
                "parallel",
                "export.parity_tokens",
                "export.parity_tolerance",
                "run.seed",
            ),
            layout=_whole,
        ),
        Stage(
            "data",
            keys=("data.held_out_fraction", "data.sources.language", "run.seed"),
            outputs=("train", "held_out", "summary.json"),
            free=("data.sources.path", "data.sources.text_key"),
            needs=("import_hf",),
            version=2,
        ),
        Stage(
            "pretrain",
            keys=(
                "model.dtype",
                "pretrain",
                *ADAM,
                "data.seq_length",
                "data.separate_documents",
                "data.global_batch_size",
                *MIX,
                "trainer.precision",
                "trainer.keep_best",
                "run.seed",
            ),
            outputs=("megatron", "architecture.json", "metrics.jsonl", "blend.json"),
            scratch=("checkpoints", "best", "index_cache"),
            free=(
                "parallel",
                "cluster",
                "data.micro_batch_size",
                "data.held_out_fraction",
                "data.held_out_tokens",
                *TRAINING,
                "trainer.max_hours",
            ),
            needs=("import_hf", "data"),
            layout=_whole,
            trains=True,
        ),
        Stage(
            "score",
            keys=(
                "model.dtype",
                "prune.calibration.sources.language",
                "prune.calibration.sources.weight",
                "prune.calibration.samples",
                "prune.calibration.seq_length",
                "prune.calibration.batch_size",
                "prune.importance.batch_aggregation",
                "prune.importance.seq_aggregation",
                "prune.importance.layers",
                "prune.importance.layer_samples",
                "prune.importance.block_sizes",
                "data.seq_length",
                "data.held_out_tokens",
                "data.held_out_fraction",
                *MIX,
                "run.seed",
            ),
            outputs=("scores.safetensors", "calibration.safetensors", "importance.json"),
            free=(
                "prune.calibration.sources.path",
                "prune.calibration.sources.text_key",
                "prune.importance.scores",
                "distill.gate_max_loss",
                "parallel.pp",
                "pipeline.stages",
                "evaluate.batch_size",
            ),
            needs=("import_hf", "source", "data"),
            # Model Optimizer scores and prunes at tensor parallel size 1 only.
            layout=lambda config: (1, config.parallel.pp),
        ),
        Stage(
            "search",
            keys=("prune.search", "prune.target", "prune.drop_layers", "data.held_out_tokens"),
            outputs=("candidates.json", "target.json"),
            scratch=("runs",),
            resumed=("runs",),
            free=(
                "parallel",
                "prune.calibration.seq_length",
                "prune.importance.block_sizes",
                "trainer.validate_every",
            ),
            needs=("import_hf", "source", "data", "score"),
        ),
        Stage(
            "prune",
            keys=(
                "model.dtype",
                "prune.target",
                "prune.drop_layers",
                "prune.keep_first_layers",
                "prune.keep_last_layers",
                "prune.importance.layers",
                "prune.compensation",
                "prune.streaming",
            ),
            outputs=("megatron", "architecture.json", "pruned.json", "kept.json"),
            scratch=("source",),
            free=(
                "model.source",
                "parallel.pp",
                "run.seed",
                "pipeline.stages",
                "prune.calibration.batch_size",
                "prune.student",
                "export.parity_tokens",
                "export.parity_tolerance",
            ),
            needs=("source", "score"),
            uses=("search",),
            layout=lambda config: (1, 1 if config.prune.streaming else config.parallel.pp),
        ),
        Stage(
            "teacher",
            keys=(
                "model.dtype",
                "teacher",
                "distill.temperature",
                "data.seq_length",
                "data.separate_documents",
                "data.global_batch_size",
                *MIX,
                "trainer.max_steps",
                "run.seed",
            ),
            outputs=("shards", "teacher.json"),
            scratch=("index_cache",),
            resumed=("shards",),
            free=(
                "distill.gate_max_loss",
                "distill.gate_tolerance",
                "data.held_out_tokens",
                "data.micro_batch_size",
                "parallel",
                "cluster",
                "pipeline.stages",
            ),
            needs=("import_hf", "source", "data", "score"),
            layout=_whole,
            trains=True,
            version=2,
        ),
        Stage(
            "distill",
            keys=(
                "model.dtype",
                *CRITERION,
                "optim",
                "data.seq_length",
                "data.separate_documents",
                "data.global_batch_size",
                *MIX,
                "trainer.max_steps",
                "trainer.precision",
                "trainer.keep_best",
                "run.seed",
            ),
            outputs=("megatron", "architecture.json", "metrics.jsonl", "blend.json"),
            scratch=("checkpoints", "best", "index_cache"),
            free=(
                "distill.gate_max_loss",
                "distill.gate_tolerance",
                "parallel",
                "cluster",
                "data.micro_batch_size",
                *TRAINING,
                "data.held_out_tokens",
                "pipeline.stages",
                "teacher",
            ),
            needs=("import_hf", "source", "data", "score", "prune"),
            uses=("teacher",),
            layout=_whole,
            trains=True,
        ),
        Stage(
            "distill_long",
            keys=(
                "model.dtype",
                *CRITERION,
                "distill_long.seq_length",
                "distill_long.rotary_base",
                "distill_long.max_steps",
                "distill_long.schedule",
                "distill_long.lr",
                "distill_long.min_lr",
                "distill_long.warmup_steps",
                "distill_long.decay_steps",
                "distill_long.global_batch_size",
                "data.separate_documents",
                *ADAM,
                *MIX,
                "trainer.precision",
                "trainer.keep_best",
                "run.seed",
            ),
            outputs=("megatron", "architecture.json", "metrics.jsonl", "blend.json"),
            scratch=("checkpoints", "best", "index_cache"),
            free=(
                "distill.gate_max_loss",
                "distill.gate_tolerance",
                "distill_long.micro_batch_size",
                "parallel",
                "cluster",
                *TRAINING,
                "data.held_out_fraction",
                "data.held_out_tokens",
                "trainer.max_hours",
                "pipeline.stages",
            ),
            needs=("import_hf", "source", "data", "score", "distill"),
            layout=_whole,
            trains=True,
        ),
        Stage(
            "export",
            keys=("model.dtype", "export"),
            outputs=("hf", "parity.json"),
            free=("parallel", "run.seed", "pipeline.stages"),
            needs=("import_hf", "model"),
            uses=("data",),
            layout=_whole,
        ),
        Stage(
            "evaluate",
            keys=("model.dtype", "evaluate", "data.seq_length", "data.held_out_tokens"),
            outputs=("metrics.json",),
            free=("parallel.tp", "run.seed", "pipeline.stages"),
            needs=("import_hf", "source", "data", "prune", "distilled"),
            # Generation with a KV cache runs on one pipeline stage.
            layout=lambda config: (config.parallel.tp, 1),
        ),
    )
}


RANKED_BY = ("prune", "teacher", "distill")
"""Stages that every candidate of a search goes through where the search distils them, so that their settings count."""

GRAPH["search"] = replace(
    GRAPH["search"],
    keys=tuple(dict.fromkeys(key for name in ("search", *RANKED_BY) for key in GRAPH[name].keys)),
    version=sum(GRAPH[name].version for name in ("search", *RANKED_BY)),
)


def needed(stage: Stage, config: Config) -> list[str]:
    """Names of the stages whose results this one reads, each once, `model` and `source` resolved."""
    meant = {"model": model_stage(config, stage.name), "source": source_stage(config)}
    meant["distilled"] = distilled_stage(config)
    needs = [meant.get(name, name) for name in stage.needs]
    return list(dict.fromkeys(needs + [name for name in stage.uses if name in config.pipeline.stages]))


def distilled_stage(config: Config) -> str:
    """The stage whose model is the last that was distilled."""
    return "distill_long" if "distill_long" in config.pipeline.stages else "distill"


def source_stage(config: Config) -> str:
    """The stage whose model is scored, cut and teaches: `pretrain` where it is part of the pipeline."""
    return "pretrain" if "pretrain" in config.pipeline.stages else "import_hf"


def model_stage(config: Config, before: str = "export") -> str:
    """The last stage of the configured pipeline before `before` that makes a model; `import_hf` if there is none."""
    stages = config.pipeline.stages
    earlier = stages[: stages.index(before)] if before in stages else stages
    return next((name for name in reversed(earlier) if name in MODEL_STAGES), "import_hf")
