"""What a user does wrong gets one clear line, exit status 2, nothing half-written; mended, the same command works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bielik_nemo import artifacts, cli, preflight
from bielik_nemo.config import CHAIN


@pytest.fixture
def command(chain, capfd: pytest.CaptureFixture[str]) -> Callable[..., int]:
    """`command(name, run_dir, *overrides)` as on the command line; returns the exit status."""

    def run(name: str, run_dir: Path, *overrides: str) -> int:
        capfd.readouterr()
        return cli.main([name, "experiment=tiny", *chain.overrides, f"run.dir='{run_dir}'", *overrides])

    return run


@pytest.fixture
def refused(command, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused(name, run_dir, *overrides)` must fail as a user's mistake should; returns the line."""

    def run(name: str, run_dir: Path, *overrides: str) -> str:
        before = finished_stages(run_dir)
        assert command(name, run_dir, *overrides) == 2
        captured = capfd.readouterr()
        assert "Traceback" not in captured.out + captured.err
        (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert captured.err.rstrip().endswith(line)
        assert finished_stages(run_dir) == before
        assert_nothing_half_written(run_dir)
        return line

    return run


def finished_stages(run_dir: Path) -> list[str]:
    return [stage for stage in CHAIN if (run_dir / stage / "manifest.json").is_file()]


def assert_nothing_half_written(run_dir: Path) -> None:
    names = [path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*")]
    odd = ("partial", ".tmp", "unfinished", "unchecked")
    assert [name for name in names if any(word in name for word in odd)] == []
    for stage in set(CHAIN) - set(finished_stages(run_dir)):
        left = {path.name for path in (run_dir / stage).glob("*")}
        assert left <= {"fingerprint", "log.txt", "checkpoints", "metrics.jsonl", "nemo"}, stage


@pytest.fixture
def source(tiny_hf: Path, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(tiny_hf, tmp_path / "source"))


# What the composition or the preflight sees: nothing has been run, and no directory is made.
@pytest.mark.parametrize(
    "override, parts",
    [
        ("optim.lrr=1", ["optim.lrr: unknown key", "did you mean optim.lr?"]),
        ("trainer.max_steps=many", ["trainer.max_steps: found 'many'", "integer"]),
        ("prune.target.num_layers=5", ["prune.target.num_layers", "5", "4"]),
        ("prune.target.ffn_hidden_size=161 model.shape=null", ["prune.target.ffn_hidden_size", "161", "160"]),
        ("prune.target.ffn_hidden_size=97 parallel.tp=2", ["parallel.tp=2", "ffn_hidden_size=97"]),
        ("model.source=/not/there", ["model.source: no such directory: '/not/there'"]),
        ("model.source=builtin:smol", ["model.source", "did you mean builtin:smollm2?"]),
        ("data.sources=[{path:/not/there.txt}]", ["data.sources[0].path", "/not/there.txt"]),
        ("pipeline.stages=[export,import_hf]", ["pipeline.stages", "import_hf, export"]),
    ],
)
def test_seen_before_anything_runs(override: str, parts: list[str], chain, refused):
    run_dir = chain.empty("refused")
    line = refused("pipeline", run_dir, *override.split())
    for part in parts:
        assert part in line
    assert not run_dir.exists()


@pytest.mark.parametrize(
    "overrides, part",
    [(["optim.lrr=1"], "optim.lrr: unknown key"), (["model.source=/not/there"], "model.source: no such directory")],
)
def test_on_the_real_command_line(overrides: list[str], part: str, tmp_path: Path):
    code = "import sys; from bielik_nemo.cli import main; sys.exit(main())"
    arguments = ["pipeline", "experiment=tiny", f"run.dir={tmp_path}/run", *overrides]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and part in line


def test_a_run_directory_in_use(chain, refused, command):
    run_dir = chain.copy("locked")
    with artifacts.locked(run_dir):
        line = refused("pipeline", run_dir)
        assert f"run.dir={run_dir}" in line and "another process" in line
    assert command("pipeline", run_dir) == 0


def test_a_stage_whose_upstream_has_not_run(chain, refused):
    line = refused("export", chain.empty("upstream"))
    assert "export needs import_hf" in line and "bielik-nemo import_hf" in line
    line = refused("distill", chain.copy("upstream", before="prune"))
    assert "distill needs prune" in line
    line = refused("distill", chain.copy("upstream"), "prune.target.num_layers=2")
    assert "distill needs prune" in line and "this configuration" in line


@pytest.mark.parametrize("cut", [1, 100_000, "header"])
def test_truncated_safetensors(cut, source: Path, tiny_hf: Path, chain, refused, command):
    weights = source / "model.safetensors"
    os.truncate(weights, 4 if cut == "header" else weights.stat().st_size - cut)
    run_dir = chain.empty("truncated")
    arguments = ("pipeline", run_dir, f"model.source='{source}'", "pipeline.stages=[import_hf]")
    assert str(weights) in refused(*arguments)
    shutil.copyfile(tiny_hf / "model.safetensors", weights)
    assert command(*arguments) == 0
    assert chain.result(run_dir, "import_hf") == chain.result(chain.finished, "import_hf")


def test_a_shard_that_is_missing(source: Path, chain, refused):
    (source / "model.safetensors").rename(source / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    line = refused("pipeline", chain.empty("shard"), f"model.source='{source}'")
    assert "model-00002-of-00002.safetensors" in line


def spoil_tokenizer(source: Path, change: Callable[[dict[str, int]], dict[str, int]]) -> None:
    path = source / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] = change(content["model"]["vocab"])
    path.write_text(json.dumps(content))


def test_a_tokenizer_with_ids_that_the_model_does_not_have(source: Path, chain, refused):
    spoil_tokenizer(source, lambda vocab: vocab | {"Łódź": 4000})
    line = refused("pipeline", chain.empty("tokenizer"), f"model.source='{source}'")
    assert str(source / "tokenizer.json") in line and "4000" in line and "263" in line


def test_another_tokenizer_of_the_same_size(source: Path, tiny_hf: Path, chain, refused, command):
    """Every id moved by 128: all of them exist, but the text is not what the model learned. Only its loss can tell."""
    spoil_tokenizer(source, lambda vocab: {token: (i + 128) % 256 for token, i in vocab.items()})
    run_dir = chain.empty("tokenizer")
    arguments = ("pipeline", run_dir, f"model.source='{source}'", "pipeline.stages=[import_hf,data,score]")
    assert (run_dir / "score").exists() is False
    # The two stages before the gate do finish.
    assert command(*arguments) == 2
    line = refused(*arguments)
    assert "held-out loss" in line and "distill.gate_max_loss=4.0" in line and "tokenizer" in line
    assert finished_stages(run_dir) == ["import_hf", "data"]
    shutil.copyfile(tiny_hf / "tokenizer.json", source / "tokenizer.json")
    assert command(*arguments) == 0
    assert chain.result(run_dir, "score") == chain.result(chain.finished, "score")


@pytest.mark.parametrize(
    "content, where, what",
    [
        (b"", "", "holds no text"),
        (b" \n\t\n", "", "holds no text"),
        ("dobrze\nźle".encode("cp1250"), ":2", "not UTF-8: byte 0x9f at offset 7"),
    ],
)
def test_text_that_is_none(content: bytes, where: str, what: str, chain, refused, command, tmp_path: Path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(20):
        (texts / f"{i:02}.txt").write_text(f"Text number {i}. " * 20)
    (texts / "10.txt").write_bytes(content)
    run_dir = chain.copy("text", before="data")
    arguments = ("data", run_dir, f"data.sources=[{{path:'{texts}'}}]", "data.held_out_fraction=0.5")
    line = refused(*arguments)
    assert f"{texts}/10.txt{where}:" in line and what in line
    (texts / "10.txt").write_text("mended")
    assert command(*arguments) == 0
    assert chain.manifest(run_dir, "data").metrics["held_out"]["tokens"] > 0


def test_no_document_on_one_side(chain, refused, tmp_path: Path):
    (tmp_path / "one.txt").write_text("The only text there is.")
    line = refused("data", chain.copy("side", before="data"), f"data.sources=[{{path:'{tmp_path}/one.txt'}}]")
    assert "data.held_out_fraction=0.05" in line and "held_out" in line


def test_a_teacher_that_lost_its_weights(chain, refused, command):
    """The file has its size and its metadata; what it holds has been overwritten since the source was measured."""
    run_dir = chain.copy("teacher", before="distill")
    weights = run_dir / "import_hf" / "megatron" / "weights"
    whole = {path: path.read_bytes() for path in weights.glob("*.distcp")}
    for path, content in whole.items():
        path.write_bytes(content[:100_000] + bytes(len(content) - 200_000) + content[-100_000:])
    line = refused("distill", run_dir)
    assert f"{run_dir}/import_hf/megatron: cannot be loaded" in line
    for path, content in whole.items():
        path.write_bytes(content)
    assert command("distill", run_dir) == 0
    assert chain.result(run_dir, "distill") == chain.result(chain.finished, "distill")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`small_disk("1m")` is a file system of that size; again, it is resized."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(size: str) -> Path:
        options = f"size={size}" if not place.is_mount() else f"remount,size={size}"
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(mount, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
        return place

    yield resize
    if place.is_mount():
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # an error's traceback may hold a file open


def test_too_little_space_is_seen_before_anything_runs(small_disk, refused):
    place = small_disk("1m")
    line = refused("pipeline", place / "run")
    assert line.startswith("error: run.dir: found ") and " free at " in line
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("size", ["300k", "900k", "1100k"])
def test_a_disk_that_fills_up_while_importing(size: str, small_disk, chain, refused, command, monkeypatch):
    monkeypatch.setattr(preflight, "_disk", lambda *_: iter(()))
    run_dir = small_disk(size) / "run"
    arguments = ("pipeline", run_dir, "pipeline.stages=[import_hf]")
    line = refused(*arguments)
    assert f"{run_dir}/import_hf" in line and "no space left on device" in line
    small_disk("32m")
    assert command(*arguments) == 0
    assert chain.result(run_dir, "import_hf") == chain.result(chain.finished, "import_hf")


def test_a_disk_that_fills_up_while_a_checkpoint_is_saved(small_disk, chain, command):
    """A checkpoint of the student is 2 MB; there is room for one, and for half of the second."""
    run_dir = small_disk("32m") / "run"
    shutil.copytree(chain.copy("disk", before="distill"), run_dir)
    used = sum(path.stat().st_blocks for path in run_dir.rglob("*")) // 2
    small_disk(f"{used + 3500}k")
    # In a process of its own: NeMo's telemetry lets a process train again only after training has ended well.
    code = "from bielik_nemo import cli, preflight; preflight._disk = lambda *_: iter(()); raise SystemExit(cli.main())"
    arguments = ["distill", "experiment=tiny", *chain.overrides, f"run.dir='{run_dir}'"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line == f"error: {run_dir}/distill: no space left on device; what is finished is kept"
    assert [path.name for path in (run_dir / "distill" / "checkpoints").iterdir()] == ["step=1"]
    assert_nothing_half_written(run_dir)
    small_disk("32m")
    assert command("distill", run_dir) == 0
    assert chain.result(run_dir, "distill") == chain.result(chain.finished, "distill")
