"""Merging on the command line: the pipeline's model with others, through the parity gate of the export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bielik_nemo import cli

STAGES = "pipeline.stages=[import_hf,merge,export]"
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def other(chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, and noise."""
    directory = Path(shutil.copytree(chain.source, tmp_path_factory.mktemp("other") / "model"))
    torch.manual_seed(0)
    tensors = load_file(directory / WEIGHTS)
    save_file({name: x + 0.05 * torch.randn_like(x) for name, x in tensors.items()}, directory / WEIGHTS)
    return directory


def command(chain, name: str, run_dir: Path, *overrides: str) -> int:
    return cli.main([name, "experiment=tiny", *chain.overrides, STAGES, f"run.dir='{run_dir}'", *overrides])


def test_a_mean_is_exported(chain, other):
    """A third of the imported model, a third of the other as a Hugging Face directory, a third of its import in another
    run; then one of them weighs more, and only what depends on it is done again."""
    elsewhere, run_dir = chain.empty("elsewhere"), chain.empty("merged")
    chain.run(elsewhere, f"model.source='{other}'", stages=["import_hf"])
    models = f"merge.models=[{{path:'{other}'}},{{path:'{elsewhere}/import_hf/megatron'}}]"
    assert command(chain, "pipeline", run_dir, models) == 0
    one, two = (load_file(directory / WEIGHTS) for directory in (chain.source, other))
    merged, exported = (load_file(run_dir / stage / "hf" / WEIGHTS) for stage in ("merge", "export"))
    for name in exported:
        expected = (one[name].double() + 2 * two[name].double()) / 3
        torch.testing.assert_close(exported[name], expected.float(), rtol=1e-6, atol=1e-7)
        assert torch.equal(exported[name], merged[name])
    assert chain.manifest(run_dir, "export").metrics["model"] == "merge"
    found = json.loads((run_dir / "merge" / "merge.json").read_text())
    assert [each["model"] for each in found["models"]] == [
        "import_hf/megatron",
        str(other),
        f"{elsewhere}/import_hf/megatron",
    ]
    assert {path.name for path in (run_dir / "merge").iterdir()} == {
        "architecture.json",
        "config.yaml",
        "fingerprint",
        "hf",
        "log.txt",
        "manifest.json",
        "merge.json",
    }
    started = {stage: chain.manifest(run_dir, stage).started for stage in ("import_hf", "merge", "export")}
    assert command(chain, "pipeline", run_dir, models, "merge.weight=2", "parallel.tp=2") == 0
    repeated = {stage for stage, time in started.items() if chain.manifest(run_dir, stage).started != time}
    assert repeated == {"merge", "export"}
    (name, found), *_ = load_file(run_dir / "merge" / "hf" / WEIGHTS).items()
    expected = (one[name].double() + two[name].double()) / 2
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-7)


def test_what_cannot_be_merged(chain, other, tmp_path, capfd):
    """One line each, before anything runs."""
    run_dir = chain.empty("refused")
    for overrides, named in (
        ([], "merge.models: found none, allowed: one at least"),
        ([f"merge.models=[{{path:'{tmp_path}/none'}}]"], "merge.models[0].path: no such directory"),
        ([f"merge.models=[{{path:'{chain.finished}/export/hf'}}]"], "allowed: a model of the same shape: num_layers 3"),
        ([f"merge.models=[{{path:'{other}'}},{{path:'{other}'}}]", "merge.method=slerp"], "with 3 models"),
    ):
        capfd.readouterr()
        assert command(chain, "pipeline", run_dir, *overrides) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("error: ") and named in line
        assert not run_dir.exists()


def test_snapshots_of_one_training_are_merged(aligned):
    """Every second of six steps; adapters are trained, and every copy is a plain model. The mean of the last two is
    that of the two given by their paths, in another run, beside a model that counts for nothing."""
    run_dir, settings = aligned.copy("snapshots", before="sft"), ("sft.lora.rank=8", "trainer.snapshot_every=2")
    stages = "pipeline.stages=[import_hf,chat,sft,merge,export]"
    aligned.run(run_dir, stages, *settings, "merge.snapshots=2")
    left = {Path(name).parts[1] for name in aligned.manifest(run_dir, "sft").outputs if name.startswith("snapshots/")}
    assert left == {"2", "4", "6"}
    last, result = (next((run_dir / "sft" / name / "weights").glob("*.distcp")) for name in ("snapshots/6", "megatron"))
    assert last.read_bytes() == result.read_bytes()
    found = json.loads((run_dir / "merge" / "merge.json").read_text())["models"]
    assert [(each["model"], each["weight"]) for each in found] == [("sft/snapshots/4", 0.5), ("sft/snapshots/6", 0.5)]
    assert found[0]["digest"] != found[1]["digest"]
    other = aligned.copy("by path", before="chat")
    models = ",".join(f"{{path:'{run_dir}/{each['model']}'}}" for each in found)
    aligned.run(other, STAGES, f"merge.models=[{models}]", "merge.weight=0")
    for stage in ("merge", "export"):
        assert (other / stage / "hf" / WEIGHTS).read_bytes() == (run_dir / stage / "hf" / WEIGHTS).read_bytes()
    assert (other / "export" / "hf" / WEIGHTS).read_bytes() != (aligned.source / WEIGHTS).read_bytes()
