"""The models that are measured side by side: those that the pipeline has made, and `evaluate.models`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.data.tokenizer import load_tokenizer
from bielik_nemo.engine import convert, model
from bielik_nemo.stages import distilled_stage, source_stage, tokenizer_beside

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Subject:
    """A model that is measured.

    Attributes:
        name: what it is called in every table.
        directory: where it is: a stage's, or a Hugging Face directory.
        tokenizer: directory with its tokenizer.
        shape: of the whole model.
        stage: of this pipeline that made it; empty: none did.
    """

    name: str
    directory: Path
    tokenizer: Path
    shape: Architecture
    stage: str = ""

    def words(self) -> PreTrainedTokenizerBase:
        """Its tokenizer.

        Raises:
            DataError: it cannot be loaded, or is another model's.
        """
        return load_tokenizer(self.tokenizer, self.shape.vocab_size)

    def load(self, config: Config) -> Any:
        """This rank's part of it, as a Megatron model in `model.dtype`.

        Raises:
            CheckpointError: the weights are missing, damaged or of another shape.
        """
        parameters = model.gpt_config(self.shape, tp=config.parallel.tp, dtype=config.model.dtype)
        megatron = model.build(parameters, self.shape)
        if (self.directory / "config.json").is_file():
            convert.load_hf(megatron, self.directory, self.shape)
        else:
            convert.load_stage(megatron, self.directory, self.shape)
        return megatron


def subjects(config: Config, run_dir: Path) -> list[Subject]:
    """The source, what the pipeline has made of it, in order, and the others.

    Raises:
        CheckpointError: one of the others is no model.
    """
    tokenizer = run_dir / config.tokenizer_stage / "tokenizer"
    found = []
    for name, stage in made(config).items():
        shape = Architecture.from_json(run_dir / stage / "architecture.json")
        found.append(Subject(name, run_dir / stage, tokenizer, shape, stage))
    return found + [other(each.name, Path(each.path)) for each in config.evaluate.models]


def made(config: Config) -> dict[str, str]:
    """The stage that makes each model of the pipeline, by the model's name."""
    every = {"pruned": "prune", "distilled": distilled_stage(config), "sft": "sft", "dpo": "dpo"}
    every |= {"grpo": "grpo", "merged": "merge"}
    return {"source": source_stage(config)} | {k: v for k, v in every.items() if v in config.pipeline.stages}


def other(name: str, directory: Path) -> Subject:
    """A model that is not this pipeline's: a Hugging Face directory, or what a stage of another run has left.

    Raises:
        CheckpointError: it is neither.
    """
    if (directory / "config.json").is_file():
        return Subject(name, directory, directory, Architecture.from_hf(directory))
    shape = Architecture.from_json(directory / "architecture.json")
    return Subject(name, directory, tokenizer_beside(directory), shape)
