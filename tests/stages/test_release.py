"""What is published of a made-up run: links to its files, and cards that tell of this pipeline alone."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from bielik_nemo.architecture import Architecture
from bielik_nemo.artifacts import Manifest
from bielik_nemo.config import Config
from bielik_nemo.stages import GRAPH, needed, release

STAGES = ["import_hf", "prune", "export", "evaluate", "release"]
FORMATS = [
    {"name": "gguf:f16", "path": "formats/model-f16.gguf", "bytes": 3, "runtime": "llama.cpp"},
    {"name": "gguf:q8_0", "path": "formats/model-q8_0.gguf", "bytes": 3, "runtime": "llama.cpp"},
    {"name": "fp8", "path": "formats/fp8", "bytes": 3, "runtime": "vllm"},
]


def put(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "mine"
    shape = Architecture(2, 8, 16, 2, 1, 4, 10, False)
    put(run / "export" / "hf" / "config.json", shape.to_hf())
    put(run / "export" / "hf" / "model.safetensors", "weights")
    put(run / "import_hf" / "architecture.json", asdict(shape))
    for stage in (*STAGES[:-1], "sft", "quantize"):
        Manifest(stage, "", {}, {}, {}, {}, {}, "", 1.0, packages={}).write(run / stage)
    put(run / "evaluate" / "metrics.json", {"held_out_loss": {"source": 2.0, "pruned": 2.5}})
    put(run / "quantize" / "metrics.json", {"tokens": 9, "loss": 2.5, "formats": FORMATS})
    for name in ("model-f16.gguf", "model-q8_0.gguf", "fp8/model.safetensors", "fp8/config.json"):
        put(run / "quantize" / "formats" / name, "{}")
    return run


@pytest.fixture
def config(run_dir: Path, tmp_path: Path) -> Config:
    made = Config()
    made.run.dir, made.pipeline.stages = str(run_dir), list(STAGES)
    made.model.source = str(tmp_path / "private" / "Large")
    made.release.name, made.release.licence = "Small-1", "apache-2.0"
    return made


def test_the_export_is_linked_with_a_card(config: Config, run_dir: Path):
    """The same files: a release of 15 GB takes no room. Nothing tells where on this machine they lie."""
    assert release.run(config, run_dir) == {"name": "Small-1", "licence": "apache-2.0", "directories": ["hf"]}
    origin, made = run_dir / "export" / "hf", run_dir / "release" / "hf"
    names = {path.name for path in origin.iterdir()}
    assert {path.name for path in made.iterdir()} == {*names, "README.md"} and "README.md" not in names
    assert all((made / name).samefile(origin / name) for name in names)
    text = (made / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["license"] == "apache-2.0"
    assert "made of `Large`" in text and "| Held-out loss, nats per token | 2.000 | 2.500 |" in text
    assert "## Licence\n\nApache-2.0." in text
    assert "private" not in text and str(run_dir.parent) not in text


def test_only_this_pipeline_is_told(config: Config, run_dir: Path):
    """`sft` and `quantize` of an earlier pipeline are still in the run's directory."""
    release.run(config, run_dir)
    text = (run_dir / "release" / "hf" / "README.md").read_text()
    assert "Supervised" not in text and "gguf" not in text
    config.pipeline.stages = [*STAGES[:1], "sft", "export", "release"]
    told = release.gather(config, run_dir)
    assert list(told.stages) == ["import_hf", "sft", "export"] and "held_out_loss" not in told.numbers


def test_other_formats_have_directories_of_their_own(config: Config, run_dir: Path):
    config.pipeline.stages = [*STAGES[:-1], "quantize", "release"]
    assert release.run(config, run_dir)["directories"] == ["fp8", "gguf", "hf"]
    here = run_dir / "release"
    assert {path.name for path in (here / "gguf").iterdir()} == {
        "README.md",
        "Small-1-F16.gguf",
        "Small-1-Q8_0.gguf",
    }
    assert {path.name for path in (here / "fp8").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert (here / "gguf" / "Small-1-F16.gguf").samefile(run_dir / "quantize" / "formats" / "model-f16.gguf")
    assert "`Small-1-Q8_0.gguf`" in (here / "gguf" / "README.md").read_text()
    assert "| gguf:q8_0 |" in (here / "hf" / "README.md").read_text()


def test_files_are_copied_where_links_cannot_be(tmp_path: Path, monkeypatch):
    def cannot(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    put(tmp_path / "a" / "deep" / "file", "content")
    monkeypatch.setattr(os, "link", cannot)
    release.link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "deep" / "file").read_text() == "content"
    assert not (tmp_path / "b" / "deep" / "file").samefile(tmp_path / "a" / "deep" / "file")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, ""),
        ({"README.md": "# no front matter\nlicense: mit\n"}, ""),
        ({"README.md": '---\nlicense: other\nlicense_name: "llama3"\n---\nlicense: mit\n'}, "other, llama3"),
        ({"README.md": "---\nlicense: mit\n---\n", "LICENSE.txt": "", "NOTICE": ""}, "mit, LICENSE.txt, NOTICE"),
    ],
)
def test_what_the_source_says_of_its_licence(tmp_path: Path, files: dict[str, str], told: str):
    for name, text in files.items():
        put(tmp_path / name, text)
    assert release.licence_of(tmp_path) == told


def test_a_release_needs_all_that_its_pipeline_does():
    config = Config()
    config.pipeline.stages = STAGES
    assert needed(GRAPH["release"], config) == ["import_hf", "export", "prune", "evaluate"]
    assert GRAPH["release"].results(config) == ("hf",)
    config.pipeline.stages = [*STAGES[:-1], "quantize", "release"]
    config.quantize.formats = ["gguf:f16", "gguf:q8_0", "fp8"]
    assert GRAPH["release"].results(config) == ("hf", "gguf", "fp8")
