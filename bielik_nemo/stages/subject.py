"""The models that are measured side by side: those that the pipeline has made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.engine import convert, model
from bielik_nemo.stages import distilled_stage, source_stage


@dataclass(frozen=True)
class Subject:
    """A model that is measured.

    Attributes:
        name: what it is called in every table.
        stage: of this pipeline that made it.
        directory: where that left it.
        tokenizer: directory with its tokenizer.
    """

    name: str
    stage: str
    directory: Path
    tokenizer: Path

    @property
    def shape(self) -> Architecture:
        """Of the whole model."""
        return Architecture.from_json(self.directory / "architecture.json")

    def load(self, config: Config) -> Any:
        """This rank's part of it, as a Megatron model."""
        shape = self.shape
        megatron = model.build(model.gpt_config(shape, tp=config.parallel.tp, dtype=config.model.dtype), shape)
        convert.load_stage(megatron, self.directory, shape)
        return megatron


def subjects(config: Config, run_dir: Path) -> list[Subject]:
    """All models of the pipeline, in the order in which they came to be."""
    made = {"pruned": "prune", "distilled": distilled_stage(config), "sft": "sft", "dpo": "dpo"}
    made |= {"grpo": "grpo", "merged": "merge"}
    stages = {"source": source_stage(config)} | {k: v for k, v in made.items() if v in config.pipeline.stages}
    tokenizer = run_dir / "import_hf" / "tokenizer"
    return [Subject(name, stage, run_dir / stage, tokenizer) for name, stage in stages.items()]
