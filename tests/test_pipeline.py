"""The pipeline over made-up stages: what is done, skipped and left behind. The real ones are run in tests/chain."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bielik_nemo import pipeline, preflight, report, ui, worker
from bielik_nemo.artifacts import Manifest
from bielik_nemo.config import Config, load
from bielik_nemo.config_align import ChatSource, PreferenceSource
from bielik_nemo.config_prune import BlendSource, TextSource
from bielik_nemo.errors import ConfigError, DataError, GateError, UserError
from bielik_nemo.stages import GRAPH, Stage

NAMES = ["import_hf", "data", "score"]


@dataclass(frozen=True)
class Made(Stage):
    """A stage that writes `result` with whatever `content` gives, and notes that it ran."""

    content: Callable[[Config], str] = lambda config: "same"
    before: Callable[[Path], None] = lambda directory: None
    ran: list[str] = field(default_factory=list)

    def run(self, config: Config, run_dir: Path) -> dict[str, Any]:
        self.ran.append(self.name)
        directory = run_dir / self.name
        self.before(directory)
        (directory / "result").write_text(self.content(config))
        print(f"a library prints in {self.name}")
        return {"length": len(self.content(config))}


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> dict[str, Made]:
    """import_hf reads the seed; data makes the same of whatever it gets; score reads the learning rate and data."""
    ran: list[str] = []
    made = {
        "import_hf": Made("import_hf", ("run.seed",), ("result",), content=lambda c: str(c.run.seed), ran=ran),
        "data": Made("data", ("model.dtype",), ("result",), needs=("import_hf",), free=("trainer.log_every",), ran=ran),
        "score": Made("score", ("optim.lr",), ("result",), needs=("data",), ran=ran),
    }
    monkeypatch.setattr(pipeline, "GRAPH", made)
    monkeypatch.setattr(preflight, "require", lambda config, names: None)
    monkeypatch.setattr(report, "write", lambda run_dir: run_dir / "report.html")
    monkeypatch.setattr(report, "collect", lambda run_dir: {})
    monkeypatch.setattr(report, "table", lambda numbers: "the table")
    return made


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The default configuration, with a source checkpoint and a text."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "a.txt").write_text("text")
    made = Config()
    made.run.dir = str(tmp_path / "run")
    made.model.source = str(tmp_path / "model")
    made.data.sources = [TextSource(path=str(tmp_path / "a.txt"))]
    made.pipeline.stages = list(NAMES)
    return made


def ran(graph: dict[str, Made], config: Config, stages: list[str] | None = None) -> list[str]:
    """Names of the stages that a run of the pipeline runs."""
    graph["data"].ran.clear()
    pipeline.run(config, stages)
    return list(graph["data"].ran)


def change(monkeypatch: pytest.MonkeyPatch, graph: dict[str, Made], name: str, **values: Any) -> None:
    monkeypatch.setitem(graph, name, Made(**vars(graph[name]) | values))


def test_stages_run_in_order_once(graph, config: Config, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setattr(ui, "say", said.append)
    monkeypatch.setattr(ui, "show", said.append)
    assert ran(graph, config) == NAMES
    assert [line.split()[:2] for line in said[:6:2]] == [[name, "running"] for name in NAMES]
    assert said[-2:] == ["the table", f"report: {config.run.dir}/report.html"]
    assert load(Path(config.run.dir) / "config.yaml") == config
    said.clear()
    assert ran(graph, config) == []
    assert [line.split()[:3] for line in said[:3]] == [[name, "done", "before"] for name in NAMES]


def test_a_manifest_tells_what_a_stage_did(graph, config: Config):
    pipeline.run(config)
    run_dir = Path(config.run.dir)
    manifest = Manifest.read(run_dir / "data")
    assert manifest.config == {"model.dtype": "float32"} and manifest.metrics == {"length": 4}
    assert set(manifest.inputs) == {"data.sources[0].text", "import_hf"}
    assert manifest.inputs["import_hf"] == Manifest.read(run_dir / "import_hf").output_digest()
    assert [entry["size"] for entry in manifest.outputs.values()] == [4]
    ((path, files),) = manifest.sources.items()
    assert path.endswith("a.txt") and list(files) == ["a.txt"]
    assert load(run_dir / "data" / "config.yaml") == config
    assert (run_dir / "data" / "log.txt").read_text() == "a library prints in data\n"
    json.dumps(vars(manifest))


def test_only_what_depends_on_a_setting_runs_again(graph, config: Config):
    pipeline.run(config)
    config.optim.lr = 1.0
    assert ran(graph, config) == ["score"]
    config.trainer.log_every = 3
    assert ran(graph, config) == []
    # The import gives another result, so the data stage runs; it gives the same one, so that scoring need not.
    config.run.seed = 5
    assert ran(graph, config) == ["import_hf", "data"]
    config.run.seed = 1234
    assert ran(graph, config) == []


def test_a_new_version_of_a_stage_runs_again(graph, config: Config, monkeypatch: pytest.MonkeyPatch):
    pipeline.run(config)
    change(monkeypatch, graph, "data", version=2)
    assert ran(graph, config) == ["data"]


def test_a_lost_or_shortened_result_is_made_again(graph, config: Config):
    pipeline.run(config)
    (Path(config.run.dir) / "data" / "result").unlink()
    assert ran(graph, config) == ["data"]
    (Path(config.run.dir) / "score" / "result").write_text("")
    assert ran(graph, config) == ["score"]


def test_content_of_files_outside_counts_and_not_their_place(graph, config: Config, tmp_path: Path):
    pipeline.run(config)
    (tmp_path / "moved").mkdir()
    config.data.sources[0].path = str((tmp_path / "a.txt").rename(tmp_path / "moved" / "a.txt"))
    assert ran(graph, config) == []
    Path(config.data.sources[0].path).write_text("other")
    assert ran(graph, config) == ["data"]
    config.data.sources[0].text_key = "body"
    assert ran(graph, config) == ["data"]
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    assert ran(graph, config) == ["import_hf"]


def test_content_of_given_scores_counts_and_not_their_place(graph, config: Config, tmp_path: Path):
    scores, elsewhere = tmp_path / "scores.safetensors", tmp_path / "elsewhere"
    scores.write_text("1")
    elsewhere.mkdir()
    pipeline.run(config)
    config.prune.importance.scores = str(scores)
    assert ran(graph, config) == ["score"]
    config.prune.importance.scores = str(scores.rename(elsewhere / scores.name))
    assert ran(graph, config) == []
    Path(config.prune.importance.scores).write_text("2")
    assert ran(graph, config) == ["score"]


def test_content_of_the_calibration_blend_counts_and_not_its_place(graph, config: Config, tmp_path: Path):
    text = tmp_path / "blend.jsonl"
    text.write_text('{"text": "1"}')
    config.prune.calibration.sources = [BlendSource(str(text))]
    pipeline.run(config)
    config.prune.calibration.sources[0].path = str(text.rename(tmp_path / "moved.jsonl"))
    assert ran(graph, config) == ["score"]  # a file's name is part of what it is; its folder is not
    (tmp_path / "other").mkdir()
    config.prune.calibration.sources[0].path = str((tmp_path / "moved.jsonl").rename(tmp_path / "other/moved.jsonl"))
    assert ran(graph, config) == []
    Path(config.prune.calibration.sources[0].path).write_text('{"text": "2"}')
    assert ran(graph, config) == ["score"]
    config.prune.calibration.sources[0].text_key = "body"
    assert ran(graph, config) == ["score"]
    config.prune.calibration.sources.append(BlendSource(str(tmp_path / "other")))
    assert ran(graph, config) == ["score"]


def test_a_directory_of_texts_counts_with_all_its_levels(graph, config: Config, tmp_path: Path):
    deep = tmp_path / "texts" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "one.jsonl").write_text('{"text": "1"}')
    (deep / "notes.md").write_text("not a text that is read")
    config.data.sources[0].path = str(tmp_path / "texts")
    pipeline.run(config)
    (deep / "notes.md").write_text("changed")
    assert ran(graph, config) == []
    (tmp_path / "texts" / "two.txt").write_text("2")
    assert ran(graph, config) == ["data"]


def test_conversations_and_preferences_count_by_their_content(config: Config, tmp_path: Path):
    config.sft.sources = [ChatSource("a"), ChatSource("b")]
    config.dpo.sources = [PreferenceSource("c")]
    assert pipeline.sources(config, GRAPH["chat"]) == {"sft.sources[0]": "a", "sft.sources[1]": "b"}
    assert pipeline.sources(config, GRAPH["preferences"]) == {"dpo.sources[0]": "c"}
    (tmp_path / "a").mkdir()
    for name in ("a/b.jsonl", "a.jsonl", "c.txt"):
        (tmp_path / name).touch()
    for stage in ("chat", "preferences"):
        found = pipeline._digest_source(str(tmp_path), pipeline.SOURCE_FILES[stage], None)
        assert set(found) == {"a/b.jsonl", "a.jsonl"}


def test_built_in_sources_count_by_what_makes_them(graph, config: Config, monkeypatch: pytest.MonkeyPatch):
    from bielik_nemo.data import builtin

    monkeypatch.setattr(builtin, "content_version", lambda source: f"first {source}")
    config.model.source, config.data.sources[0].path = "builtin:tiny", "builtin:package-docs"
    pipeline.run(config)
    assert ran(graph, config) == []
    monkeypatch.setattr(builtin, "content_version", lambda source: f"second {source}")
    assert ran(graph, config) == ["import_hf", "data"]


def test_a_stage_alone_needs_what_stands_before_it(graph, config: Config):
    with pytest.raises(DataError, match=r"run\.dir=.*: data needs import_hf, .* run `bielik-nemo import_hf`"):
        pipeline.run(config, ["score"])  # what is to be run first is named first
    pipeline.run(config, ["import_hf"])
    with pytest.raises(DataError, match=r"run\.dir=.*: score needs data, .* run `bielik-nemo data`"):
        pipeline.run(config, ["score"])
    pipeline.run(config, ["data"])
    assert ran(graph, config, ["score"]) == ["score"]
    config.run.seed = 5
    with pytest.raises(DataError, match="data needs import_hf"):
        pipeline.run(config, ["score"])


def leave(directory: Path) -> None:
    """What an attempt may leave that is killed."""
    for name in ("half.partial", "checkpoints/step=1/weights", "checkpoints/step=3/weights", "nemo", "index_cache"):
        (directory / name).mkdir(parents=True)
    for name in ("checkpoints/step=3-unfinished", "metrics.jsonl", "result"):
        (directory / name).write_text("left")


def left(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if "weights" not in path.name}


def stop(error: BaseException) -> Callable[[Path], None]:
    def before(directory: Path) -> None:
        leave(directory)
        raise error

    return before


@pytest.mark.parametrize("error", [GateError("no"), ValueError("ours"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_half_written(error: BaseException, graph, config: Config, monkeypatch):
    change(monkeypatch, graph, "data", before=stop(error))
    with pytest.raises(type(error)) as caught:
        pipeline.run(config)
    assert caught.value is error
    assert left(Path(config.run.dir) / "data") == {"fingerprint", "log.txt"}
    change(monkeypatch, graph, "data", before=lambda directory: None)
    assert ran(graph, config) == ["data", "score"]  # the import stays finished


def test_a_stage_that_trains_keeps_its_finished_checkpoints(graph, config: Config, monkeypatch):
    change(monkeypatch, graph, "data", before=stop(GateError("no")), trains=True)
    with pytest.raises(GateError):
        pipeline.run(config)
    kept = {"checkpoints", "checkpoints/step=1", "metrics.jsonl", "nemo"}
    assert left(Path(config.run.dir) / "data") == {"fingerprint", "log.txt"} | kept


def test_what_a_stage_goes_on_from_outlives_a_failure_and_goes_with_its_scratch(graph, config: Config, monkeypatch):
    def before(directory: Path) -> None:
        (directory / "runs" / "one").mkdir(parents=True)
        raise GateError("no")

    kept = {"scratch": ("runs",), "resumed": ("runs",)}
    change(monkeypatch, graph, "data", before=before, **kept)
    with pytest.raises(GateError):
        pipeline.run(config)
    assert left(Path(config.run.dir) / "data") == {"fingerprint", "log.txt", "runs", "runs/one"}
    change(monkeypatch, graph, "data", before=lambda directory: None, **kept)
    assert ran(graph, config) == ["data", "score"]
    assert not (Path(config.run.dir) / "data" / "runs").exists()


def test_candidates_are_ranked_by_this_process_before_the_search_is_finished(graph, config: Config, monkeypatch):
    """Through the very function that runs any stage, so that what is done is skipped and what was killed goes on."""
    asked: list[bool] = []

    def rank(config: Config, run_dir: Path, run_stage: Callable) -> dict[str, Any]:
        asked.append((run_dir / "search" / "manifest.json").exists())
        one = run_dir / "search" / "runs" / "one"
        one.mkdir(parents=True)
        (one / "import_hf").symlink_to("../../../import_hf")
        run_stage(config, graph["data"], one)
        run_stage(config, graph["data"], one)
        return {"target": "one"}

    monkeypatch.setattr(pipeline.ranking, "rank", rank)
    search = Made(
        "search", ("prune.search",), ("result",), needs=("import_hf",), scratch=("runs",), ran=graph["data"].ran
    )
    monkeypatch.setitem(graph, "search", search)
    config.pipeline.stages = ["import_hf", "search"]
    assert ran(graph, config) == ["import_hf", "search"] and asked == []  # nothing to distil
    config.prune.search.distill_steps = 4
    assert ran(graph, config) == ["search", "data"] and asked == [False]
    assert Manifest.read(Path(config.run.dir) / "search").metrics == {"length": 4, "target": "one"}
    assert not (Path(config.run.dir) / "search" / "runs").exists()
    assert ran(graph, config) == [] and asked == [False]


def test_a_latency_table_counts_by_its_content(graph, config: Config, monkeypatch, tmp_path: Path):
    monkeypatch.setitem(graph, "search", Made("search", (), ("result",), ran=graph["data"].ran))
    (tmp_path / "table.json").write_text("1")
    config.prune.search.latency_table = str(tmp_path / "table.json")
    config.pipeline.stages = ["search"]
    assert ran(graph, config) == ["search"] and ran(graph, config) == []
    (tmp_path / "table.json").write_text("22")
    assert ran(graph, config) == ["search"]


def test_what_a_kill_left_is_gone_when_the_stage_starts_again(graph, config: Config, monkeypatch):
    found: list[set[str]] = []
    change(monkeypatch, graph, "data", before=lambda directory: found.append(left(directory)))
    directory = Path(config.run.dir) / "data"
    pipeline.run(config, ["import_hf", "data"])
    for trains in (False, True):
        (directory / "manifest.json").unlink()
        leave(directory)
        change(monkeypatch, graph, "data", trains=trains)
        pipeline.run(config, ["data"])
    own = {"fingerprint", "log.txt", "config.yaml"}
    kept = {"checkpoints", "checkpoints/step=1", "metrics.jsonl", "nemo"}
    assert found == [own, own, own | kept]


def test_what_a_kill_left_beside_the_stages_is_gone(graph, config: Config):
    run_dir = Path(config.run.dir)
    (run_dir / ".data.partial").mkdir(parents=True)
    for name in (".data.partial/fingerprint", ".config.yaml.123.partial"):
        (run_dir / name).write_text("half")
    pipeline.run(config)
    assert {path.name for path in run_dir.iterdir()} == {".lock", "config.yaml", *NAMES}


def test_scratch_goes_only_after_the_manifest_stands(graph, config: Config, monkeypatch):
    def checkpoints(directory: Path) -> None:
        (directory / "checkpoints").mkdir()

    there: list[bool] = []
    write = Manifest.write

    def written(self: Manifest, directory: Path) -> None:
        there.append((directory / "checkpoints").exists())
        write(self, directory)

    monkeypatch.setattr(Manifest, "write", written)
    change(monkeypatch, graph, "data", before=checkpoints, scratch=("checkpoints",))
    pipeline.run(config)
    assert there == [False, True, False]
    left_over = Path(config.run.dir) / "data" / "checkpoints"
    assert not left_over.exists()
    left_over.mkdir()  # as by a kill in between
    assert ran(graph, config) == [] and not left_over.exists()


def test_a_full_disk_is_the_user_s_to_mend(graph, config: Config, monkeypatch):
    change(monkeypatch, graph, "data", before=stop(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(UserError) as caught:
        pipeline.run(config)
    assert str(caught.value) == f"{config.run.dir}/data: no space left on device; what is finished is kept"
    assert left(Path(config.run.dir) / "data") == {"fingerprint", "log.txt"}


def test_several_processes_are_ranks_of_the_worker(graph, config: Config, monkeypatch):
    def run_ranks(stage: str, frozen: Path, log: Path, processes: int, lock: int) -> dict[str, Any]:
        assert (stage, processes, log.name) == ("data", 2, "log.txt") and load(frozen) == config and lock > 2
        (frozen.parent / "result").write_text("of two")
        return {"ranks": processes}

    monkeypatch.setattr(worker, "run_ranks", run_ranks)
    change(monkeypatch, graph, "data", layout=lambda config: (2, 1))
    pipeline.run(config)
    assert Manifest.read(Path(config.run.dir) / "data").metrics == {"ranks": 2}


def test_a_manifest_says_what_a_stage_held(graph, config: Config, monkeypatch):
    """GPUs where the machines have some and the stage uses them, a price where it is known."""
    config.cluster.gpu_memory_gib, config.cluster.price_per_gpu_hour, config.cluster.currency = 80.0, 2.5, "PLN"
    change(monkeypatch, graph, "data", gpu=False)
    pipeline.run(config)
    found = [Manifest.read(Path(config.run.dir) / name) for name in ("import_hf", "data")]
    assert [each.gpus for each in found] == [1, 0]
    assert [each.price for each in found] == [{"per_gpu_hour": 2.5, "currency": "PLN"}, {}]
    config.cluster.price_per_gpu_hour, config.run.seed = 0.0, 7
    pipeline.run(config)
    assert Manifest.read(Path(config.run.dir) / "import_hf").price == {}


def test_training_on_several_machines_is_not_for_this_command(graph, config: Config, monkeypatch):
    change(monkeypatch, graph, "data", trains=True)
    config.cluster.nodes = 2
    with pytest.raises(ConfigError, match=r"cluster\.nodes=2"):
        pipeline.run(config)


def test_nothing_is_begun_when_the_preflight_finds_errors(graph, config: Config, monkeypatch):
    def refuse(config: Config, names: list[str]) -> None:
        raise ConfigError(f"found with {names}")

    monkeypatch.setattr(preflight, "require", refuse)
    with pytest.raises(ConfigError, match="score"):
        pipeline.run(config)
    assert not Path(config.run.dir).exists()
