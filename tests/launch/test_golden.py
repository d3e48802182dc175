"""The job scripts of the full-size pipeline, on every cluster and in every kind of container.

`golden` has them as sbatch gets them: of all stages in the container that the cluster's configuration names, of one
that does not train and one that does in the others. They are written anew by
`UPDATE=1 pytest tests/launch/test_golden.py`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bielik_nemo import submit
from bielik_nemo.config import Config, compose
from bielik_nemo.launch import jobs
from bielik_nemo.validation import submission

GOLDEN = Path(__file__).with_name("golden")
CLUSTERS = {"slurm_h100": "pyxis", "dgx_h200": "pyxis", "helios_gh200": "apptainer", "slurm_bare": "none"}
SETTINGS = {
    "none": ["cluster.python=/opt/venv/bin/python"],
    "pyxis": ["cluster.container_image=/images/nemo.sqsh"],
    "apptainer": ["cluster.container_image=/images/nemo.sif"],
}
SENT = {"PYTHONPATH": "/runs/minitron/launch/code/0123", "BIELIK_NEMO_CODE": "0123", "BIELIK_NEMO_FROM": "/"}


def minitron(cluster: str, container: str) -> Config:
    """Bielik-Minitron-7B, with what everybody adds to a cluster's configuration."""
    added = ["launch=slurm", "run.dir=/runs/minitron", "cluster.account=plg-llm", f"cluster.container={container}"]
    added += ["cluster.mounts=[/models:/models:ro]", *SETTINGS[container]]
    if cluster != "helios_gh200":
        added += ["cluster.partition=gpu", "cluster.cpu_partition=cpu"]
    config = compose("bielik_minitron_7b", [f"cluster={cluster}", *added])
    assert list(submission.problems(config)) == []
    return config


@pytest.mark.parametrize("container", SETTINGS)
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_scripts(cluster: str, container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir("/")
    config = minitron(cluster, container)
    planned = jobs.plan(config, config.pipeline.stages if container == CLUSTERS[cluster] else ["data", "distill"])
    found = submit.scripts(planned, tmp_path, SENT) | {"submit": submit.in_order(planned)}
    found = {f"{name}.sh": text.replace(str(tmp_path), "/runs/minitron/launch/records") for name, text in found.items()}
    subprocess.run(["bash", "-n"], input="\n".join(found.values()), text=True, check=True)
    golden = GOLDEN / f"{cluster}-{container}"
    if os.environ.get("UPDATE"):
        shutil.rmtree(golden, ignore_errors=True)
        golden.mkdir(parents=True)
        for name, text in found.items():
            (golden / name).write_text(text)
    assert found == {path.name: path.read_text() for path in golden.iterdir()}
