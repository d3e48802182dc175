"""What would stop a run, found before it starts: at once, offline, without torch, and all of it, not only the first.

Adds the files to what `validation` says about the configuration alone: checkpoint, tokenizer, texts, run directory
and disk.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from bielik_nemo import budget, checkpoints, places, quantization
from bielik_nemo.align import scoring
from bielik_nemo.align.nemo_rl import render as nemo_rl
from bielik_nemo.architecture import Architecture
from bielik_nemo.artifacts import MANIFEST
from bielik_nemo.config import Config
from bielik_nemo.data import blend, builtin_chat, builtin_tasks, harness_checks
from bielik_nemo.data.builtin_chat import CONVERSATIONS, CORRECTIONS, PAIRS
from bielik_nemo.data.text import PACKAGE_DOCS
from bielik_nemo.errors import CheckpointError, ConfigError, DataError
from bielik_nemo.prune import latency, search
from bielik_nemo.validation import problems, submission
from bielik_nemo.validation.ranges import chat_sources, text_sources
from bielik_nemo.validation.shapes import shape_problems, source_architecture
from bielik_nemo.validation.stages import release_problems

TEXT_SUFFIXES = (".jsonl", ".parquet", ".txt")
CHAT_SUFFIXES = (".jsonl",)
TASKS = "path:builtin:drills,rewards:[{function:bielik_nemo.align.rewards.maths}]"
TOKENISING = {"tokenizers", "data", "chat", "preferences", "tasks"}


@dataclass(frozen=True)
class Finding:
    """One thing that stops the run (level `error`) or that its owner should know (`warning`)."""

    level: str
    key: str
    message: str  # one line, which begins with the key


def require(config: Config, stages: Sequence[str]) -> None:
    """Raise `ConfigError` with every error that stops these stages, one per line."""
    errors = [finding.message for finding in findings(config, stages) if finding.level == "error"]
    if errors:
        raise ConfigError("\n".join(errors))


def findings(config: Config, stages: Sequence[str] | None = None) -> list[Finding]:
    """All findings, errors first.

    With `stages`, what these need must be here. Without, the whole pipeline is checked, maybe for another machine: when
    the checkpoint is not here, but `model.shape` says what it looks like, then missing files and disk are warnings.
    """
    errors, warnings = problems(config), []
    if not errors:  # paths and sizes that are impossible in themselves are not worth a second look
        wanted = config.pipeline.stages if stages is None else stages
        absent = list(checkpoints.absent_source(config)) if "import_hf" in wanted else []
        elsewhere = bool(absent) and stages is None and config.model.shape is not None
        local = warnings if elsewhere else errors
        local += absent
        if "import_hf" in wanted and Path(config.model.source).is_dir():
            errors += checkpoints.source(config, tokenizer_needed=not TOKENISING.isdisjoint(wanted))
        local += _absent_texts(config, wanted)
        errors += _texts(config, wanted)
        if {"tasks", "grpo"} & set(wanted):
            # Imports the modules of rewards, which are light; one that is not is the user's own choice.
            local += scoring.problems([source.rewards for source in config.grpo.sources])
        if "grpo" in wanted and config.grpo.engine == "megatron" and config.grpo.rollouts == "vllm":
            local += (
                [] if find_spec("vllm") else ["grpo.rollouts: found vllm, which is not installed, allowed: megatron"]
            )
        local += checkpoints.absent_tokenizers(config, wanted)
        if "swap_tokenizer" in wanted:
            local += _absent_packages("swap_tokenizer", ("gensim", "entmax"), "tokenizer")
        if "score" in wanted:
            errors += _blend(config)
            local += _absent_scores(config)
        if "benchmark" in wanted:
            local += _benchmark(config, wanted)
        local += checkpoints.absent_models(config, wanted)
        errors += checkpoints.models_to_merge(config) if "merge" in wanted else ()
        errors += checkpoints.models_to_measure(config) if "evaluate" in wanted else ()
        if "evaluate" in wanted and config.evaluate.harness.tasks:
            local += harness_checks.problems(config.evaluate.harness)
        if "release" in wanted and "release" not in config.pipeline.stages:
            errors += release_problems(config)
        if "grpo" in wanted and config.grpo.engine == "nemo_rl":
            errors += nemo_rl.problems(config)
            errors += [] if config.launch.executor else submission.nemo_rl(config)
        if config.launch.executor:
            errors += submission.problems(config)
        if config.launch.executor == "slurm":
            errors += [] if stages is None else places.no_slurm(config)
            errors += places.other_architecture(config)
            local += places.absent(config)
            warnings += places.unmounted(config, wanted)
        if "quantize" in wanted:
            local += quantization.missing(config)
        errors += _run_dir(config)
        if costs := _costs(config, errors, wanted):
            local += _disk(config, costs, wanted)
            errors += checkpoints.other_shapes(config, costs) if "merge" in wanted else ()
            errors += quantization.misfits(config, costs.target) if "quantize" in wanted else ()
        warnings += _oddities(config)
    lines = [("error", line) for line in errors] + [("warning", line) for line in warnings]
    return [Finding(level, re.match(r"[\w.\[\]]*", line)[0], line) for level, line in lines]


def costs(config: Config) -> budget.Budget | None:
    """The budget, if the configuration is possible and the source's shape is known."""
    return None if problems(config) else _costs(config, [], config.pipeline.stages)


def candidates(config: Config) -> search.Result | None:
    """What the search will find, where the pipeline has one and the source's shape is known.

    Without scores, which are not there yet, candidates are ranked by parameters whatever the objective.

    Raises:
        ConfigError: there is no shape within the budgets, or no table of latencies.
    """
    source = None if problems(config) else architecture(config)
    if source is None or "search" not in config.pipeline.stages:
        return None
    settings = config.prune.search
    rotated = config.prune.compensation.rotation
    return search.find(source, search.fixed(config, source), settings, latency.load(settings), rotated=rotated)


def _costs(config: Config, errors: list[str], wanted: Sequence[str]) -> budget.Budget | None:
    source = architecture(config)
    if source is None:
        return None
    if config.model.shape is None and (wrong := shape_problems(config, source, wanted)):
        errors += wrong
        return None
    try:
        found = candidates(config)
    except ConfigError as error:
        errors += str(error).splitlines()
        return None
    if found is None:
        return budget.estimate(config, source)
    settings = replace(config.prune.search, top_k=min(config.prune.search.top_k, len(found.candidates)))
    if settings.objective == "parameters":  # otherwise these are not yet the ones that will be taken
        first = found.candidates[: settings.top_k if settings.distill_steps else 1]
        errors += search.unusable(config, source, first)
    try:
        aimed = search.aimed_at(config, found.candidates[0])
        return budget.estimate(replace(aimed, prune=replace(aimed.prune, search=settings)), source)
    except ConfigError:  # it is among the errors
        return None


def architecture(config: Config) -> Architecture | None:
    """Shape of the source: `model.shape`, or else that of its checkpoint; None when neither can be read."""
    try:
        found = source_architecture(config) or Architecture.from_hf(config.model.source)
        swapped = Path(config.swap_tokenizer.tokenizer, "tokenizer.json")
        if "swap_tokenizer" in config.pipeline.stages and swapped.is_file():
            found = replace(found, vocab_size=checkpoints.largest_id(swapped) + 1)
        return found
    except (ConfigError, CheckpointError, DataError):
        return None


def _benchmark(config: Config, wanted: Sequence[str]) -> Iterator[str]:
    """Loads longer than what the models were made for, and what is missing to measure them."""
    if "import_hf" not in wanted:
        yield from checkpoints.absent_source(config)
    if config.benchmark.engine == "vllm" and not find_spec("vllm"):
        yield "benchmark.engine: found vllm, which is not installed, allowed: transformers"
    shape = architecture(config)
    for index, point in enumerate(config.benchmark.points if shape else ()):
        if (length := point.input_tokens + point.output_tokens) > shape.max_position_embeddings:
            yield (
                f"benchmark.points[{index}]: found {length} tokens together, allowed: "
                f"{shape.max_position_embeddings:,}, the context of model.source"
            )


@dataclass(frozen=True)
class _Text:
    """A source that a stage reads, and what it may be."""

    key: str
    path: str
    suffixes: tuple[str, ...]
    builtin: tuple[str, ...]

    @property
    def allowed(self) -> str:
        kinds = ", ".join(self.suffixes)
        return f"a {kinds} file, a directory of them, or {' or '.join(self.builtin)}"


def _needed_texts(config: Config, wanted: Sequence[str]) -> Iterator[_Text]:
    """Every source of text or conversations that these stages read."""
    reader = {"data": "data", "prune": "score", "sft": "chat", "dpo": "preferences", "grpo": "tasks"}
    builtin = {"chat": CONVERSATIONS, "preferences": PAIRS, "tasks": tuple(builtin_tasks.SETS)}
    for key, source in (*text_sources(config), *chat_sources(config)):
        stage = reader[key.partition(".")[0]]
        if stage in wanted or (stage == "data" and {"tokenizers", "swap_tokenizer"} & set(wanted)):
            suffixes = CHAT_SUFFIXES if stage in builtin else TEXT_SUFFIXES
            yield _Text(f"{key}.path", source.path, suffixes, builtin.get(stage, (PACKAGE_DOCS,)))


def _blend(config: Config) -> Iterator[str]:
    """A source that would give no sample would be left out without a word."""
    settings = config.prune.calibration
    weights = [source.weight for source in settings.sources]
    for index, count in enumerate(blend.shares(weights, settings.samples)):
        if not count:
            yield (
                f"prune.calibration.sources[{index}].weight: found {weights[index]}, allowed: enough for one of "
                f"prune.calibration.samples={settings.samples}; the sum of the weights is {sum(weights):g}"
            )


def _absent_texts(config: Config, wanted: Sequence[str]) -> Iterator[str]:
    for text in _needed_texts(config, wanted):
        if text.path in CONVERSATIONS and text.path in text.builtin:
            try:
                builtin_chat.files(text.path)
            except DataError as error:
                yield f"{text.key}: {error}"
        elif text.path not in text.builtin and not Path(text.path).exists():
            yield f"{text.key}: no such file or directory: {text.path!r}; allowed: {text.allowed}"


def _absent_packages(key: str, names: Sequence[str], extra: str) -> Iterator[str]:
    absent = [name for name in names if not find_spec(name)]
    if absent:
        yield f'{key}: needs {" and ".join(absent)}, not installed here; pip install "bielik_nemo[{extra}]"'


def _absent_scores(config: Config) -> Iterator[str]:
    path = config.prune.importance.scores
    if path and not Path(path).is_file():
        yield f"prune.importance.scores: no such file: {path!r}; allowed: scores.safetensors of a run, or empty"


def _texts(config: Config, wanted: Sequence[str]) -> Iterator[str]:
    if {"data", "tokenizers", "swap_tokenizer"} & set(wanted) and not config.data.sources:
        yield f"data.sources: found none, allowed: a list of paths, such as 'data.sources=[{{path:{PACKAGE_DOCS}}}]'"
    for stage, key, found, such in (
        ("chat", "sft", config.sft.sources, f"path:{CORRECTIONS}"),
        ("preferences", "dpo", config.dpo.sources, f"path:{CORRECTIONS}"),
        (
            "tasks",
            "grpo",
            config.grpo.sources,
            TASKS,
        ),
    ):
        if stage in wanted and not found:
            yield f"{key}.sources: found none, allowed: a list of paths, such as '{key}.sources=[{{{such}}}]'"
    for text in _needed_texts(config, wanted):
        path = Path(text.path)
        if text.path in text.builtin or not path.exists():
            continue
        files = path.rglob("*") if path.is_dir() else [path]
        first = next((file for file in files if file.suffix in text.suffixes and file.is_file()), None)
        if first is None:
            yield f"{text.key}: found no text in {text.path!r}, allowed: {text.allowed}"
        elif not os.access(first, os.R_OK):
            yield f"{text.key}: found {str(first)!r}, which this user may not read"


def _existing(path: Path) -> Path:
    """`path` or the nearest folder above it that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _run_dir(config: Config) -> Iterator[str]:
    there = _existing(Path(config.run.dir))
    if not there.is_dir():
        yield f"run.dir: found {config.run.dir!r}, allowed: a directory, but {there} is a file"
    elif not os.access(there, os.W_OK | os.X_OK):
        yield f"run.dir: found {config.run.dir!r}, allowed: a directory that can be written; {there} cannot"


def _disk(config: Config, costs: budget.Budget, wanted: Sequence[str]) -> Iterator[str]:
    there = _existing(Path(config.run.dir))
    to_do = {stage for stage in wanted if not Path(config.run.dir, stage, MANIFEST).exists()}
    free, need = shutil.disk_usage(there).free, sum(size for stage, size in costs.disk.items() if stage in to_do)
    if need > free:
        enough = f"at least about {budget.size_text(need)} (estimate)"
        yield f"run.dir: found {budget.size_text(free)} free at {there}, allowed: {enough}"


def _oddities(config: Config) -> Iterator[str]:
    devices = config.world_size // config.cluster.nodes
    if config.parallel.tp > devices:
        yield f"parallel.tp: found {config.parallel.tp}, more than the {devices} devices of a node: slow between nodes"
    searched = "search" in config.pipeline.stages
    cut = any(asdict(config.prune.target).values()) or config.prune.drop_layers or config.prune.student
    if "prune" in config.pipeline.stages and not searched and not cut:
        yield "prune.target: found no size, so nothing is pruned"
    if config.prune.compensation.rotation and not searched and config.prune.target.hidden_size is None:
        yield "prune.compensation.rotation: nothing to rotate for, since prune.target.hidden_size is not given"
    yield from _odd_search(config) if searched else _odd_budgets(config)


def _odd_budgets(config: Config) -> Iterator[str]:
    for name in search.budgets(config.prune.search):
        yield f"prune.search.{name}: not used, since pipeline.stages has no search (prune=auto has one)"


def _odd_search(config: Config) -> Iterator[str]:
    settings, source = config.prune.search, architecture(config)
    steps, full = settings.distill_steps, config.trainer.max_steps
    if steps and settings.top_k == 1:
        yield "prune.search.distill_steps: one candidate alone has no rank; raise prune.search.top_k, or take 0 steps"
    if steps > full and "distill" in config.pipeline.stages:
        yield f"prune.search.distill_steps: found {steps}, more than the {full} steps of trainer.max_steps that follow"
    if steps and "distill" not in config.pipeline.stages:
        yield "prune.search.distill_steps: candidates are distilled, but pipeline.stages does not distil the best"
    limit = settings.max_parameters
    if source and limit and source.num_parameters(settings.embeddings) <= limit:
        yield f"prune.search.max_parameters: found {limit:,.12g}, which the source model does not exceed"
