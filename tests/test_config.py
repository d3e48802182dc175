import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from bielik_nemo.config import CHAIN, STAGES, Config, Shape, compose, freeze, load, view
from bielik_nemo.config_prune import TextSource
from bielik_nemo.errors import ConfigError


def test_everything_has_a_default_and_the_defaults_are_possible():
    config = compose()
    assert config.pipeline.stages == CHAIN and set(CHAIN) < set(STAGES)
    assert (config.run.dir, config.model.source, config.model.shape) == ("runs/default", "", None)


def test_compose_gives_every_problem_with_key_found_and_allowed():
    with pytest.raises(ConfigError) as caught:
        compose("tiny", ["optim.lr=0", "trainer.precision=16", "data.held_out_fraction=1"])
    assert str(caught.value).splitlines() == [
        "optim.lr: found 0.0, allowed: a positive number",
        "data.held_out_fraction: found 1.0, allowed: 0 up to, not including, 1",
        "trainer.precision: found '16', allowed: 32, bf16-mixed",
    ]


def test_sizes_of_the_world():
    """2 nodes of 8 devices: 16; a model over tp 2 * pp 4 = 8 of them: 2 copies. No number of devices given: 1 * 8."""
    config = Config()
    config.parallel.tp, config.parallel.pp = 2, 4
    assert (config.world_size, config.data_parallel_size) == (8, 1)
    config.cluster.nodes, config.cluster.devices_per_node = 2, 8
    assert (config.world_size, config.data_parallel_size) == (16, 2)


@pytest.mark.parametrize("name", ["", "tiny", "smollm2", "bielik_minitron_7b"])
def test_frozen_and_loaded_is_the_same(name: str, tmp_path: Path):
    config = compose(name, ["run.dir='/dane/Łódź: a # b'", "run.name='1e3'", "optim.lr=1e-3"])
    freeze(config, tmp_path / "new" / "config.yaml")
    again = load(tmp_path / "new" / "config.yaml")
    assert again == config
    assert repr(again) == repr(config)  # types too: 1 == 1.0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.yaml"]


def test_loaded_text_stays_text(tmp_path: Path):
    config = Config(model=compose().model)
    config.run.name, config.run.dir = "${not.resolved}", "null"
    config.evaluate.prompts = ["", "yes", "1", " a\n\n b\t", "ą\u2028🦆", "- x: y"]
    config.data.sources = [TextSource("a"), TextSource("b", "content")]
    config.model.shape = Shape(num_layers=3)
    freeze(config, tmp_path / "c.yaml")
    assert load(tmp_path / "c.yaml") == config


def test_freeze_replaces_and_leaves_nothing_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "config.yaml"
    freeze(compose(), path)
    before = path.read_bytes()

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError):
        freeze(compose("tiny"), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda values: values["optim"].pop("lr"), "optim.lr: missing"),
        (lambda values: values["optim"].update(lrr=1), "optim.lrr: unknown key; did you mean lr?"),
        (lambda values: values["optim"].update(lr="1e-4"), "optim.lr: found '1e-4', allowed: a number"),
        (lambda values: values["run"].update(seed=1.0), "run.seed: found 1.0, allowed: an integer"),
        (lambda values: values.update(run=None), "run: found None, allowed: the keys name, dir, seed"),
        (lambda values: values["pipeline"].update(stages="data"), "pipeline.stages: found 'data', allowed: a list"),
    ],
)
def test_load_is_strict(change, message: str, tmp_path: Path):
    values = asdict(compose())
    change(values)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert f"{path}: {message}" in str(caught.value)


@pytest.mark.parametrize("content", [b"a: [", b"\xff", b"", b"3"])
def test_load_of_what_is_no_configuration(content: bytes, tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=str(path)) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        load(tmp_path / "none.yaml")


def test_view_gives_plain_values():
    config = compose("tiny")
    assert view(config, ["data.seq_length", "prune.target", "data.sources"]) == {
        "data.seq_length": 128,
        "prune.target": dict.fromkeys(asdict(config.prune.target)) | {"num_layers": 3, "ffn_hidden_size": 96},
        "data.sources": [{"path": "builtin:package-docs", "text_key": "text", "language": "", "weight": None}],
    }
    config.data.sources = [TextSource("a", language="pl"), TextSource("b")]
    assert view(config, ["data.sources.language", "prune.calibration.sources.weight"]) == {
        "data.sources.language": ["pl", ""],
        "prune.calibration.sources.weight": [],
    }
    with pytest.raises(KeyError):
        view(config, ["optim.lrr"])


def test_importing_and_composing_load_nothing_heavy():
    code = (
        "import sys, bielik_nemo.config as c\n"
        "first = [m for m in ('hydra', 'omegaconf', 'yaml', 'torch') if m in sys.modules]\n"
        "c.compose('tiny')\n"
        "print(first, [m for m in ('torch', 'nemo', 'megatron', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] []"
