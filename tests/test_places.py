"""What jobs on Slurm need of this machine: sbatch, an image that the nodes can run, mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bielik_nemo import places, preflight
from bielik_nemo.config import Config, compose


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The tiny chain on Helios, as far as files go."""
    (tmp_path / "models").mkdir()
    (tmp_path / "nemo.sif").write_bytes(sif(b"04\0"))
    return compose(
        "tiny",
        [
            "cluster=helios_gh200",
            "launch=slurm",
            "cluster.account=plg-x",
            f"run.dir='{tmp_path}/run'",
            f"cluster.container_image='{tmp_path}/nemo.sif'",
            f"cluster.mounts=['{tmp_path}/models:/models:ro']",
        ],
    )


def sif(architecture: bytes) -> bytes:
    """The head of a SIF file: 32 bytes that start it, the magic word, two digits of a version, the architecture."""
    return b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + b"SIF_MAGIC\0" + b"01\0" + architecture + b"\0" * 64


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nemo-arm64.sqsh", "aarch64"),
        ("nemo_aarch64.sif", "aarch64"),
        ("registry.example#team/nemo:25.07-amd64", "x86_64"),
        ("nemo.x86_64.sqsh", "x86_64"),
        ("nemo.sqsh", None),
        ("charm64.sqsh", None),
        ("nemo-amd64-and-arm64.sqsh", None),
    ],
)
def test_architecture_by_name(name, expected):
    assert places.architecture(name) == expected


def test_what_a_file_says_goes_before_its_name(tmp_path):
    image = tmp_path / "nemo-arm64.sif"
    for code, expected in ((b"02\0", "x86_64"), (b"04\0", "aarch64"), (b"06\0", "another architecture")):
        image.write_bytes(sif(code))
        assert places.architecture(str(image)) == expected
    image.write_bytes(b"hsqs")  # a squashfs has no word of it
    assert places.architecture(str(image)) == "aarch64"
    image.write_bytes(b"")
    assert places.architecture(str(image)) == "aarch64"


def test_all_is_well(config):
    assert list(places.absent(config)) == list(places.other_architecture(config)) == []


def test_an_image_for_other_nodes(config, tmp_path):
    (tmp_path / "nemo.sif").write_bytes(sif(b"02\0"))
    assert [each.message for each in preflight.findings(config, ["import_hf"]) if "image" in each.key] == [
        f"cluster.container_image: found '{tmp_path}/nemo.sif', which is for x86_64, allowed: one for "
        "cluster.architecture=aarch64"
    ]


def test_an_image_and_a_mount_that_are_not_here(config, tmp_path):
    (tmp_path / "nemo.sif").unlink()
    (tmp_path / "models").rmdir()
    assert list(places.absent(config)) == [
        f"cluster.container_image: no such file: '{tmp_path}/nemo.sif'; launch/containers has how to make one",
        f"cluster.mounts[0]: no such file or directory: '{tmp_path}/models'",
    ]
    config.cluster.container = "none"  # which needs neither
    assert list(places.absent(config)) == list(places.other_architecture(config)) == []


def test_without_sbatch_only_a_dry_run(config, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = places.no_slurm(config)
    assert found.startswith("launch.executor: found slurm, but there is no sbatch on the path")
    errors = [each.message for each in preflight.findings(config, ["import_hf"]) if each.level == "error"]
    assert errors == [found]
    assert found not in [each.message for each in preflight.findings(config)]  # checked here, run elsewhere
    config.launch.dry_run = True
    assert list(places.no_slurm(config)) == []


def test_a_path_that_no_mount_brings_in(config):
    config.data.sources[0].path, config.model.source = "/text/polish", "/models/bielik"
    assert list(places.unmounted(config, ["import_hf", "data"])) == [
        "data.sources[0].path: '/text/polish' is not in the container, unless the cluster sees to it; "
        "see cluster.mounts"
    ]
    assert list(places.unmounted(config, ["import_hf"])) == []
