"""The stages: what each reads, needs and does. The graph is here, light enough for the command line.

A stage's module has `run(config, run_dir) -> metrics`; it works in `run_dir/<stage>`, on every rank, and may read only
the settings that its node declares: in tokenization.py, compression.py, alignment.py and, for what ends a pipeline,
outcome.py. `keys` decide its result and so its fingerprint; `free` settings (layout, rhythm) do not, so that changing
them neither repeats nor restarts finished work.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bielik_nemo.config import STAGES, Config
from bielik_nemo.stages.alignment import ALIGNMENT
from bielik_nemo.stages.compression import COMPRESSION
from bielik_nemo.stages.outcome import OUTCOME
from bielik_nemo.stages.stage import RESUMED, Stage
from bielik_nemo.stages.tokenization import TOKENIZATION

__all__ = ["GRAPH", "RESUMED", "Stage", "distilled_stage", "model_stage", "needed", "source_stage", "tokenizer_beside"]

SOURCE_STAGES = ("import_hf", "swap_tokenizer", "adapt", "pretrain")
"""Stages that make the model which is scored, cut and teaches, in order; the last of them in the pipeline counts."""

MODEL_STAGES = (*SOURCE_STAGES, "prune", "distill", "distill_long", "sft", "dpo", "grpo", "merge")
"""Stages that leave a model in `<stage>/megatron`, or `<stage>/hf`, and its shape in `<stage>/architecture.json`."""

_NODES = {stage.name: stage for stage in (*TOKENIZATION, *COMPRESSION, *ALIGNMENT, *OUTCOME)}
GRAPH = {name: _NODES[name] for name in STAGES}

RANKED_BY = ("prune", "teacher", "distill")
"""Stages that every candidate of a search goes through where the search distils them, so that their settings count."""

GRAPH["search"] = replace(
    GRAPH["search"],
    keys=tuple(dict.fromkeys(key for name in ("search", *RANKED_BY) for key in GRAPH[name].keys)),
    version=sum(GRAPH[name].version for name in ("search", *RANKED_BY)),
)

# The cards of a release tell of all that was done and measured.
GRAPH["release"] = replace(GRAPH["release"], uses=tuple(name for name in GRAPH if name != "release"))


def needed(stage: Stage, config: Config) -> list[str]:
    """Names of the stages whose results this one reads, each once, with `model` and its like resolved."""
    meant = {"model": model_stage(config, stage.name), "source": source_stage(config, stage.name)}
    meant["tokenizer"] = config.tokenizer_stage
    meant["distilled"] = distilled_stage(config)
    needs = [meant.get(name, name) for name in stage.needs]
    return list(dict.fromkeys(needs + [name for name in stage.uses if name in config.pipeline.stages]))


def distilled_stage(config: Config) -> str:
    """The stage whose model is the last that was distilled."""
    return "distill_long" if "distill_long" in config.pipeline.stages else "distill"


def source_stage(config: Config, before: str = "") -> str:
    """The stage whose model is scored, cut and teaches; for one of `SOURCE_STAGES`, that with whose model it begins."""
    earlier = SOURCE_STAGES[: SOURCE_STAGES.index(before)] if before in SOURCE_STAGES else SOURCE_STAGES
    return next((name for name in reversed(earlier) if name in config.pipeline.stages), "import_hf")


def model_stage(config: Config, before: str = "export") -> str:
    """The last stage of the configured pipeline before `before` that makes a model; `import_hf` if there is none."""
    stages = config.pipeline.stages
    earlier = stages[: stages.index(before)] if before in stages else stages
    return next((name for name in reversed(earlier) if name in MODEL_STAGES), "import_hf")


def tokenizer_beside(stage: Path) -> Path:
    """Directory of a run's tokenizer, of which a stage's directory is known; it need not be there."""
    swapped, imported = (stage.absolute().parent / name / "tokenizer" for name in ("swap_tokenizer", "import_hf"))
    return swapped if swapped.is_dir() else imported
