"""Definitions of images: what goes into them is there, and install.sh leaves what was built for the image's CUDA."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = ROOT / "launch" / "containers"
IMAGE = "torch==2.8.0a0+34c6371d24.nv25.8\ntransformer_engine==2.5.0\nnvidia-cudnn==9.11.0\nmegatron-core==0.13.0\n"
PYTHON = """#!/bin/bash
case "$*" in
    -c*) echo {version} ;;
    "-m pip list"*) printf '{packages}' ;;
    "-m pip install"*) echo "$*" >{log}; echo "constraint=$PIP_CONSTRAINT" >>{log}; cp $6 {log}.constraints ;;
esac
"""


def install(tmp_path: Path, wanted: str = "aarch64", version: str = "3.12.3", packages: str = IMAGE):
    """Run install.sh on a made-up aarch64 machine, whose Python writes down what pip is asked for."""
    for name in ("bin", "opt"):
        (tmp_path / name).mkdir()
    python = PYTHON.format(version=version, packages=packages.replace("\n", "\\n"), log=tmp_path / "log")
    for name, text in (("python3", python), ("uname", "#!/bin/bash\necho aarch64\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    for path in (HERE / "install.sh", ROOT / "launch" / "constraints.txt"):
        (tmp_path / "opt" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "opt" / "bielik_nemo-1-py3-none-any.whl").touch()
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "PIP_CONSTRAINT": "/etc/pip/constraint.txt"}
    command = ["bash", str(tmp_path / "opt" / "install.sh"), wanted]
    return subprocess.run([*command], env=env, capture_output=True, text=True)


def test_pins_ours_and_keeps_what_the_image_has_for_its_cuda(tmp_path):
    assert install(tmp_path).returncode == 0
    asked, constraint = (tmp_path / "log").read_text().splitlines()
    assert asked.startswith("-m pip install --no-cache-dir --constraint ") and asked.endswith("-any.whl")
    assert constraint == "constraint="
    written = (tmp_path / "log.constraints").read_text().splitlines()
    found = dict(line.split("==") for line in written if not line.startswith("#"))
    assert found["torch"] == "2.8.0a0+34c6371d24.nv25.8" and found["nvidia-cudnn"] == "9.11.0"
    assert found["megatron-core"] == "0.15.3" and found["nvidia-modelopt"] == "0.43.0" and "torchmetrics" in found
    assert not {"cuda-bindings", "cuda-pathfinder"} & set(found)  # ours, which the image has no need of


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"wanted": "x86_64"}, "ARCHITECTURE: found x86_64, allowed: aarch64, which the base image is for"),
        ({"version": "3.10.12"}, "BASE: found an image with Python 3.10.12, allowed: 3.11, 3.12"),
        ({"packages": "megatron-core==0.13.0\n"}, "BASE: found an image without PyTorch, allowed: NVIDIA's of"),
        ({"packages": "triton==3.4.0\n"}, "BASE: found an image without PyTorch, allowed: NVIDIA's of"),
    ],
)
def test_refuses(tmp_path, settings, told):
    found = install(tmp_path, **settings)
    assert found.returncode == 1 and found.stderr.startswith(told)
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("name", ["Containerfile", "apptainer.def"])
def test_definitions(name):
    """What they copy is there, but for the wheel that is to be made; they take an image by argument and name none."""
    text = (HERE / name).read_text()
    for path in re.findall(r"\b(?:dist|launch)/\S+", text):
        assert path == "dist/*.whl" or (ROOT / path).is_file()
    assert re.search(r"^(FROM \$\{BASE\}|From: \{\{ BASE \}\})$", text, re.MULTILINE)
    assert re.search(r"bash /opt/bielik_nemo/install\.sh (\"\$\{ARCHITECTURE\}\"|\{\{ ARCHITECTURE \}\})$", text, re.M)
