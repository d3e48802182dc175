"""The typed configuration: every key, its type and its one default.

Hydra composes YAML from `conf/` (installed as `bielik_nemo.conf`) onto these dataclasses. YAML files only override; an
unknown key, a wrong type or an impossible value is a `ConfigError` that names the key, what it got and what is allowed.
Stages read a frozen copy of the result, never Hydra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import reduce
from pathlib import Path
from typing import Any, Optional

from bielik_nemo import keys
from bielik_nemo.artifacts import write_text
from bielik_nemo.config_align import DPO, SFT, Chat, Merge
from bielik_nemo.config_grpo import GRPO
from bielik_nemo.config_launch import Cluster, Launch
from bielik_nemo.config_outcome import Benchmark, Evaluate, Export, Quantize, Release
from bielik_nemo.config_prune import Prune, TextSource
from bielik_nemo.config_tokenizer import Adapt, SwapTokenizer, Tokenizers
from bielik_nemo.config_training import LIVE_ONLY, Distill, DistillLong, Optim, Pretrain, Teacher, Trainer
from bielik_nemo.errors import ConfigError

STAGES = ["import_hf", "tokenizers", "swap_tokenizer", "data", "adapt", "pretrain"]
STAGES += ["score", "search", "prune", "teacher", "distill", "distill_long"]
STAGES += ["chat", "sft", "preferences", "reference", "dpo", "tasks", "grpo", "merge", "export", "evaluate"]
STAGES += ["benchmark", "quantize", "release"]
"""All stages, in the order in which a pipeline may have them."""

CHAIN = ["import_hf", "data", "score", "prune", "distill", "export", "evaluate"]
"""The stages from a checkpoint to a smaller one of a given shape."""


@dataclass
class Run:
    """Where a run lives and what makes it repeatable."""

    name: str = "default"
    dir: str = "runs/${run.name}"
    seed: int = 1234


@dataclass
class Shape:
    """Shape of a decoder whose checkpoint need not be at hand, so that a run can be checked and priced anywhere."""

    num_layers: int = 0
    hidden_size: int = 0
    ffn_hidden_size: int = 0
    num_attention_heads: int = 0
    num_query_groups: int = 0
    head_dim: int = 0
    vocab_size: int = 0
    tie_embeddings: bool = False
    rotary_base: float = 10000.0
    max_position_embeddings: int = 0
    norm_epsilon: float = 1e-5
    model_type: str = "llama"


@dataclass
class Model:
    """The pretrained model that everything starts from."""

    source: str = ""  # a Hugging Face directory, or builtin:smollm2, builtin:tiny
    dtype: str = "float32"  # of the Megatron weights and of the export: float32, bfloat16
    shape: Optional[Shape] = None  # None: read it from the checkpoint; given: the checkpoint must agree


@dataclass
class Data:
    """Text, and how it is cut into batches."""

    sources: list[TextSource] = field(default_factory=list)
    language_weights: dict[str, float] = field(default_factory=dict)  # {pl: 0.7, en: 0.3}: of the training samples
    held_out_fraction: float = 0.05  # of documents, by content hash: a document is never on both sides
    held_out_tokens: int = 65536  # the same ones measure source, teacher, pruned and distilled model, everywhere
    seq_length: int = 4096
    global_batch_size: int = 768
    micro_batch_size: int = 1
    separate_documents: bool = False  # in training: no attention to the documents before, nor a prediction across


@dataclass
class Parallel:
    """How one model, or one sequence, is split; data parallelism takes the devices that are left."""

    tp: int = 1
    pp: int = 1
    cp: int = 1  # of training only: the tokens of a sequence are shared out; needs GPUs and Transformer Engine
    sequence_parallel: bool = False  # between tensor-parallel ranks; needs GPUs and Transformer Engine


@dataclass
class Pipeline:
    """Which part of the chain to run."""

    stages: list[str] = field(default_factory=lambda: list(CHAIN))


@dataclass
class Config:
    """The whole configuration of a run."""

    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    tokenizers: Tokenizers = field(default_factory=Tokenizers)
    swap_tokenizer: SwapTokenizer = field(default_factory=SwapTokenizer)
    adapt: Adapt = field(default_factory=Adapt)
    pretrain: Pretrain = field(default_factory=Pretrain)
    prune: Prune = field(default_factory=Prune)
    teacher: Teacher = field(default_factory=Teacher)
    distill: Distill = field(default_factory=Distill)
    distill_long: DistillLong = field(default_factory=DistillLong)
    chat: Chat = field(default_factory=Chat)
    sft: SFT = field(default_factory=SFT)
    dpo: DPO = field(default_factory=DPO)
    grpo: GRPO = field(default_factory=GRPO)
    merge: Merge = field(default_factory=Merge)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    parallel: Parallel = field(default_factory=Parallel)
    trainer: Trainer = field(default_factory=Trainer)
    cluster: Cluster = field(default_factory=Cluster)
    launch: Launch = field(default_factory=Launch)
    export: Export = field(default_factory=Export)
    evaluate: Evaluate = field(default_factory=Evaluate)
    benchmark: Benchmark = field(default_factory=Benchmark)
    quantize: Quantize = field(default_factory=Quantize)
    release: Release = field(default_factory=Release)
    pipeline: Pipeline = field(default_factory=Pipeline)

    @property
    def world_size(self) -> int:
        """Number of processes, one per device."""
        one = self.parallel.tp * self.parallel.pp * self.parallel.cp
        return self.cluster.nodes * (self.cluster.devices_per_node or one)

    @property
    def data_parallel_size(self) -> int:
        """Number of copies of the model."""
        return self.world_size // (self.parallel.tp * self.parallel.pp * self.parallel.cp)

    @property
    def tokenizer_stage(self) -> str:
        """The stage whose tokenizer, in its `tokenizer/`, is the run's."""
        return "swap_tokenizer" if "swap_tokenizer" in self.pipeline.stages else "import_hf"

    def paced_by(self, own: Adapt | Pretrain | DistillLong | SFT | DPO | GRPO) -> Config:
        """This configuration with a stage's own length, rates, batch and mix in the places that have these names."""
        names = {each.name for each in fields(own)}

        def taken(section: Any) -> Any:
            return replace(section, **{f.name: getattr(own, f.name) for f in fields(section) if f.name in names})

        return replace(self, data=taken(self.data), optim=taken(self.optim), trainer=taken(self.trainer))

    @property
    def cacheable(self) -> bool:
        """Whether what the stage `teacher` keeps is enough for this distillation; it draws ids at temperature 1."""
        enough = self.teacher.kind == "top_k" or self.distill.temperature == 1
        return enough and not any(getattr(self.distill.weights, name) for name in LIVE_ONLY)


def compose(recipe: str = "", overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Config:
    """The configuration of experiment `recipe` (empty: none) with Hydra overrides on top, checked.

    `config_dir` is the user's own folder of groups, searched after ours. Raises `ConfigError`: one line for each key
    that is unknown, mistyped or impossible. No file outside the configuration is looked at (see preflight.py).
    """
    from bielik_nemo import composition  # Hydra: only where something is composed

    return from_hydra(composition.compose_dict(recipe, overrides, config_dir))


def from_hydra(composed: Any) -> Config:
    """What Hydra composed, in this program or in another with `bielik_nemo_schema` in it, checked as `compose` does.

    Args:
        composed: OmegaConf's, the whole or the part of it that is ours.

    Raises:
        ConfigError: see `compose`.
    """
    from bielik_nemo import composition, validation

    config = composition.to_object(composed)
    if problems := validation.problems(config):
        raise ConfigError("\n".join(problems))
    return config


def freeze(config: Config, path: str | Path) -> None:
    """Write every key as YAML, atomically. Stages and ranks read this file with `load`."""
    write_text(Path(path), dump(config))


def dump(config: Config) -> str:
    """Every key as YAML."""
    import yaml

    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)


def load(path: str | Path) -> Config:
    """Read what `freeze` wrote. Strict: `ConfigError` for a key that is missing, unknown or of another type."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    return parse(text, str(path))


def parse(text: str, path: str) -> Config:
    """Read what `dump` wrote, as `load` does; `path` is what errors call it."""
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    problems: list[str] = []
    config = keys.build(Config, values, "", problems)
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    return config


def view(config: Config, selected: Sequence[str]) -> dict[str, Any]:
    """Plain values of dotted keys or whole sections, as `{"data.seq_length": 64, "optim": {...}}`.

    A key inside a list stands for the values of all its items: `{"data.sources.language": ["pl", "en"]}`.
    """

    def inside(section: Any, name: str) -> Any:
        return [item[name] for item in section] if isinstance(section, list) else section[name]

    plain = asdict(config)
    return {key: reduce(inside, key.split("."), plain) for key in selected}
