"""Every shipped experiment on every shipped cluster composes, passes what `check` looks for, and can be dry-run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bielik_nemo import check, preflight, submit
from bielik_nemo.config import Config, compose
from bielik_nemo.launch import code
from bielik_nemo.validation.shapes import source_architecture

IMAGES = {"none": "", "pyxis": "nemo-x86_64.sqsh", "apptainer": "nemo-aarch64.sif"}
CLUSTERS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "cluster").glob("*.yaml"))


@pytest.fixture(scope="module", autouse=True)
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A machine with images, room for an 11B model and, as far as their names and heads go, its weights and texts."""
    here = tmp_path_factory.mktemp("machine")
    shape = source_architecture(compose("bielik_minitron_7b"))
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text(json.dumps(shape.to_hf()))
    for name in ("model/model.safetensors", "text.jsonl", *filter(None, IMAGES.values())):
        (here / name).touch()
    (here / "model" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    sent = code.Code(here / "code", "0123", "", ())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**14, 0, 10**14))
        patch.setattr(code, "ship", lambda launch, into: sent)  # test_code.py has what it does
        yield here


def configured(machine: Path, experiment: str, cluster: str) -> Config:
    """What a user adds to the two: paths, an account, a partition, an image."""
    added = [f"cluster={cluster}", f"run.dir={machine}/{experiment}-{cluster}", "launch.dry_run=true"]
    if experiment == "bielik_minitron_7b":
        added += [f"model.source={machine}/model"]
        added += [f"{each}.sources=[{{path: {machine}/text.jsonl}}]" for each in ("data", "sft", "dpo")]
        maths = "rewards: [{function: bielik_nemo.align.rewards.maths}]"
        added.append(f"grpo.sources=[{{path: {machine}/text.jsonl, {maths}}}]")
    if cluster == "local":
        return compose(experiment, [*added, "launch=local"])
    config = compose(experiment, [*added, "launch=slurm", "cluster.account=mine"])
    config.cluster.partition = config.cluster.partition or "gpu"
    image = IMAGES[config.cluster.container]
    config.cluster.container_image = image and f"{machine}/{image}"
    return config


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("experiment", ["tiny", "smollm2", "bielik_minitron_7b"])
def test_composes_checks_and_dry_runs(machine: Path, experiment: str, cluster: str, capfd: pytest.CaptureFixture):
    config = configured(machine, experiment, cluster)
    assert [each.message for each in check.findings(config, preflight.costs(config)) if each.level == "error"] == []
    submit.run(config)
    stages = config.pipeline.stages
    if cluster == "local":
        commands = capfd.readouterr().err.splitlines()
        assert [line.split()[-1] for line in commands if "-m bielik_nemo.job" in line] == stages
    else:
        written = {path.stem for path in (Path(config.run.dir) / "launch" / "dry_run").glob("*.sh")}
        assert written == {*stages, "submit"}
