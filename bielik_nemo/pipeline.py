"""The pipeline: run stages in order, skip what is done, resume what was interrupted, then write the report.

What decides whether a stage is done is its fingerprint: its settings (`Stage.keys`), the digests of what it reads, and
its version. So a change upstream reruns exactly what depends on it, and a change of layout or rhythm reruns nothing.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bielik_nemo import artifacts, ranking, stopping, ui, worker
from bielik_nemo import config as configuration
from bielik_nemo.artifacts import Manifest
from bielik_nemo.config import Config
from bielik_nemo.config_outcome import Harness
from bielik_nemo.errors import ConfigError, DataError, UserError
from bielik_nemo.stages import GRAPH, RESUMED, Stage, needed

LOG, LOGS = "log.txt", "log*.txt"  # a job has one for each node

Start = Callable[[str, Path, Path, int], dict[str, Any]]
"""Runs a stage on several ranks: its name, frozen configuration, log, number of ranks; returns what rank 0 measured."""

TEXTS = ("**/*.txt", "**/*.jsonl", "**/*.parquet")
TOKENIZER = ("*.json", "tokenizer.model", "*.jinja", "merges.txt")
SOURCE_FILES = {
    "import_hf": ("*.safetensors", *TOKENIZER),
    "tokenizers": (*TOKENIZER, *TEXTS),
    "swap_tokenizer": (*TOKENIZER, *TEXTS),
    "data": TEXTS,
    "prune": ("*.safetensors", *TOKENIZER),
    "score": TEXTS,
    "search": (),
    "chat": ("**/*.jsonl",),
    "preferences": ("**/*.jsonl",),
    "tasks": ("**/*.jsonl",),
    "merge": ("*.safetensors", *TOKENIZER, "weights/*"),
    "release": ("README.md", "LICEN*", "NOTICE*"),
    "benchmark": ("*.safetensors", "*.json"),
    "evaluate": ("*.safetensors", *TOKENIZER, "megatron/weights/*", "hf/*", *TEXTS, "**/*yaml", "**/*.py"),
}
"""Files that count in a directory outside the run that a stage reads."""


def run(config: Config, stages: list[str] | None = None) -> None:
    """Run stages in the given order (default: `pipeline.stages`), each once.

    Raises:
        UserError: what the user can mend; finished stages stay finished.
        Stopped: a signal came, or `trainer.max_hours` are over; the same call goes on later.
    """
    from bielik_nemo import preflight, report

    run_dir = Path(config.run.dir)
    names = config.pipeline.stages if stages is None else stages
    preflight.require(config, names)
    elsewhere = {"grpo"} if config.grpo.engine == "nemo_rl" else set()
    if config.cluster.nodes > 1 and any(GRAPH[name].trains for name in names if name not in elsewhere):
        raise ConfigError(
            f"cluster.nodes={config.cluster.nodes}: this command starts processes on one machine, allowed: 1, or "
            "launch=slurm"
        )
    with stopping.listening(config.trainer.max_hours), artifacts.locked(run_dir) as lock:
        for left in run_dir.glob(".*.partial"):  # by one that was killed
            artifacts.remove(left)
        configuration.freeze(config, run_dir / "config.yaml")
        start = functools.partial(worker.run_ranks, lock=lock)
        for name in names:
            run_stage(config, GRAPH[name], run_dir, start)
        page = report.write(run_dir)
    ui.show(report.table(report.collect(run_dir)))
    ui.say(f"report: {page}")


def fingerprint(config: Config, stage: Stage, inputs: dict[str, str]) -> str:
    """Digest of everything that decides a stage's result."""
    settings = configuration.view(config, stage.keys)
    decisive = {"stage": stage.name, "version": stage.version, "config": settings, "inputs": inputs}
    return artifacts.digest(decisive | ({"changes": dict(stage.changes)} if stage.changes else {}))


def sources(config: Config, stage: Stage) -> dict[str, str]:
    """What a stage reads outside the run directory: its path, by what it is to the stage."""
    if stage.name in ("import_hf", "release"):
        return {"model.source": config.model.source}
    texts = {f"data.sources[{i}].{source.text_key}": source.path for i, source in enumerate(config.data.sources)}
    if stage.name == "tokenizers":
        compared = {f"tokenizers.compared.{name}": path for name, path in config.tokenizers.compared.items()}
        return {"model.source": config.model.source} | compared | texts
    if stage.name == "swap_tokenizer":
        return {"swap_tokenizer.tokenizer": config.swap_tokenizer.tokenizer} | texts
    if stage.name == "data":
        return texts
    if stage.name == "chat":
        return {f"sft.sources[{i}]": source.path for i, source in enumerate(config.sft.sources)}
    if stage.name == "preferences":
        return {f"dpo.sources[{i}]": source.path for i, source in enumerate(config.dpo.sources)}
    if stage.name == "tasks":
        return {f"grpo.sources[{i}]": source.path for i, source in enumerate(config.grpo.sources)}
    if stage.name == "score":
        blend, scores = config.prune.calibration.sources, config.prune.importance.scores
        texts = {f"prune.calibration.sources[{i}].{source.text_key}": source.path for i, source in enumerate(blend)}
        return texts | ({"prune.importance.scores": scores} if scores else {})
    if stage.name == "merge":
        return {f"merge.models[{index}].path": model.path for index, model in enumerate(config.merge.models)}
    if stage.name in ("evaluate", "benchmark"):
        others = {f"evaluate.models[{index}].path": model.path for index, model in enumerate(config.evaluate.models)}
        own = {"model.source": config.model.source} if stage.name == "benchmark" else _tasks(config.evaluate.harness)
        return others | own
    if stage.name == "prune" and config.prune.student:
        return {"prune.student": config.prune.student}
    if stage.name == "search" and config.prune.search.latency_table:
        return {"prune.search.latency_table": config.prune.search.latency_table}
    return {}


def _tasks(settings: Harness) -> dict[str, str]:
    """Directories of documents and tasks of `evaluate`, where it asks any."""
    paths = {"data_dir": settings.data_dir, "include_path": settings.include_path} if settings.tasks else {}
    return {f"evaluate.harness.{name}": path for name, path in paths.items() if path}


def _digest_source(root: str, patterns: tuple[str, ...], known: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    if root.startswith("builtin:"):
        from bielik_nemo.data.builtin import content_version

        return {root: {"size": 0, "mtime_ns": 0, "sha256": content_version(root)}}
    path = Path(root)
    if path.is_file():
        return artifacts.digest_files(path.parent, [path], known)
    files = {file for pattern in patterns for file in path.glob(pattern) if file.is_file()}
    return artifacts.digest_files(path, files, known)


def finished(config: Config, stage: Stage, run_dir: Path) -> tuple[Manifest | None, str, dict[str, Any]]:
    """The stage's manifest if it is done under this configuration, its fingerprint, and its inputs' digests.

    Raises:
        DataError: a stage that this one needs has not run, or ran under another configuration.
    """
    directory = run_dir / stage.name
    manifest = Manifest.read(directory)
    known = manifest.sources if manifest else {}
    paths = sources(config, stage)
    files = {path: _digest_source(path, SOURCE_FILES[stage.name], known.get(path)) for path in paths.values()}
    inputs = {name: artifacts.content_digest(files[path]) for name, path in paths.items()}
    for name in needed(stage, config):
        left = Manifest.read(run_dir / name)  # a task that was changed before it ran counts with its changes
        upstream, *_ = finished(config, replace(GRAPH[name], changes=left.changes if left else {}), run_dir)
        if upstream is None:
            raise DataError(
                f"run.dir={run_dir}: {stage.name} needs {name}, which has not finished under this configuration; "
                f"run `bielik-nemo {name}` or the whole pipeline with the same overrides first"
            )
        inputs[name] = upstream.output_digest()
    mark = fingerprint(config, stage, inputs)
    done = manifest is not None and manifest.fingerprint == mark and manifest.intact(directory)
    return (manifest if done else None), mark, {"inputs": inputs, "sources": files}


def run_stage(config: Config, stage: Stage, run_dir: Path, start: Start) -> None:
    """Run one stage, unless it is done.

    Args:
        config: of the run.
        stage: which.
        run_dir: of the run.
        start: what runs it on several ranks, where it takes them.

    Raises:
        UserError: what the user can mend.
        Stopped: a signal came.
    """
    directory = run_dir / stage.name
    manifest, mark, read = finished(config, stage, run_dir)
    if manifest is not None:
        ui.say(f"{stage.name:<10} done before ({manifest.seconds:.0f} s)")
    else:
        artifacts.open_stage(run_dir, stage.name, mark)
        manifest = Manifest.read(directory)
        if manifest is not None and manifest.fingerprint == mark and manifest.intact(directory):
            ui.say(f"{stage.name:<10} done before ({manifest.seconds:.0f} s), taken back from superseded")
        else:
            ui.say(f"{stage.name:<10} running")
            seconds = _work(config, stage, run_dir, start, fingerprint=mark, **read)
            ui.say(f"{stage.name:<10} done in {seconds:.0f} s")
    for name in stage.scratch:
        shutil.rmtree(directory / name, ignore_errors=True)
    stopping.check()  # training ends before it heeds a signal that comes after its last step


def _work(config: Config, stage: Stage, run_dir: Path, start: Start, **known: Any) -> float:
    """Run a stage and record it, with what is known of it before; returns the seconds it took."""
    directory = run_dir / stage.name
    _clear(directory, stage)
    configuration.freeze(config, directory / "config.yaml")
    started, clock = datetime.now(UTC), time.monotonic()
    with _failure(directory, stage):
        metrics = _execute(config, stage, run_dir, start)
        outputs = artifacts.digest_files(directory, _outputs(directory, stage.results(config)))
        seconds = round(time.monotonic() - clock, 2)
        Manifest(
            stage=stage.name,
            config=configuration.view(config, stage.keys),
            metrics=metrics,
            outputs=outputs,
            started=started.isoformat(timespec="seconds"),
            seconds=seconds,
            changes=dict(stage.changes),
            **_held(config, stage),
            **known,
        ).write(directory)
    return seconds


def _held(config: Config, stage: Stage) -> dict[str, Any]:
    """The GPUs that the stage had, and what each is paid for an hour."""
    cluster = config.cluster
    if not stage.gpu or not cluster.gpu_memory_gib:
        return {}
    price = {"per_gpu_hour": cluster.price_per_gpu_hour, "currency": cluster.currency}
    return {"gpus": stage.world_size(config)} | ({"price": price} if cluster.price_per_gpu_hour else {})


def _execute(config: Config, stage: Stage, run_dir: Path, start: Start) -> dict[str, Any]:
    """Run a stage here when one process is enough, else on ranks of their own."""
    directory = run_dir / stage.name
    if stage.name == "grpo" and config.grpo.engine == "nemo_rl":
        from bielik_nemo.launch import nemo_rl  # NeMo-Run: only where something is submitted

        with ui.library_output_to(directory / LOG):
            return nemo_rl.run(config, run_dir)
    processes = stage.world_size(config)
    if processes == 1:
        with ui.library_output_to(directory / LOG):
            metrics = stage.run(config, run_dir)
        if stage.name == "search" and config.prune.search.distill_steps:
            metrics |= ranking.rank(config, run_dir, functools.partial(run_stage, start=start))
        return metrics
    return start(stage.name, directory / "config.yaml", directory / LOG, processes)


def _outputs(directory: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """The files that make up a stage's result."""
    for name in names:
        path = directory / name
        yield from (p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _clear(directory: Path, stage: Stage) -> None:
    """Remove what an interrupted attempt left, except what training goes on from."""
    kept = (artifacts.FINGERPRINT, *(RESUMED if stage.trains else ()), *stage.resumed)
    for path in directory.iterdir():
        if path.name not in kept and not path.match(LOGS):
            artifacts.remove(path)
    # NeMo's mark of a checkpoint that it was writing or removing.
    for mark in directory.glob("checkpoints/*-unfinished"):
        shutil.rmtree(mark.with_name(mark.name.removesuffix("-unfinished")), ignore_errors=True)
        mark.unlink()


@contextlib.contextmanager
def _failure(directory: Path, stage: Stage) -> Iterator[None]:
    """Leave nothing half-written behind a failure, and tell a full disk from a bug."""
    try:
        yield
    except BaseException as error:  # torch's CheckpointException is not an Exception
        _clear(directory, stage)
        if artifacts.disk_full(error):
            raise UserError(f"{directory}: no space left on device; what is finished is kept") from error
        raise
