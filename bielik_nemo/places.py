"""What jobs on Slurm need of this machine and of the files that it sees: sbatch, the image, mounts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from bielik_nemo.config import Config
from bielik_nemo.validation import ranges

SIF_MAGIC, SIF_ARCHITECTURES = b"SIF_MAGIC\0", {b"02\0": "x86_64", b"04\0": "aarch64"}
SIF_START, SIF_VERSION = 32, 3
"""Bytes of a SIF file before the magic word, and between it and the code of the architecture (apptainer/sif)."""
NAMED = {"x86_64": r"x86_64|amd64", "aarch64": r"aarch64|arm64"}
READER = {"prune.importance": "score", "prune.calibration": "score", "prune.student": "prune", "model": "import_hf"}
READER |= {"data": "data", "sft": "chat", "dpo": "preferences", "grpo": "tasks", "merge": "merge"}
READER |= {"tokenizers": "tokenizers", "swap_tokenizer": "swap_tokenizer", "evaluate": "evaluate"}
"""The stage that reads a path, by the start of its key."""


def no_slurm(config: Config) -> Iterator[str]:
    """There is nothing to submit with."""
    if shutil.which("sbatch") is None and not config.launch.dry_run:
        yield (
            "launch.executor: found slurm, but there is no sbatch on the path, allowed: on a machine that has it; "
            "launch.dry_run=true writes the job scripts anywhere"
        )


def absent(config: Config) -> Iterator[str]:
    """An image or the outside of a mount that is not here."""
    cluster = config.cluster
    image = cluster.container_image
    if cluster.container != "none" and image.startswith("/") and not Path(image).exists():
        yield f"cluster.container_image: no such file: {image!r}; launch/containers has how to make one"
    for index, mount in enumerate(cluster.mounts if cluster.container != "none" else ()):
        if not Path(mount.partition(":")[0]).exists():
            yield f"cluster.mounts[{index}]: no such file or directory: {mount.partition(':')[0]!r}"


def other_architecture(config: Config) -> Iterator[str]:
    """An image that the nodes cannot run."""
    cluster = config.cluster
    found = architecture(cluster.container_image) if cluster.container != "none" else None
    if found and found != cluster.architecture:
        yield (
            f"cluster.container_image: found {cluster.container_image!r}, which is for {found}, allowed: one for "
            f"cluster.architecture={cluster.architecture}"
        )


def architecture(image: str) -> str | None:
    """Of an image, as the head of a SIF file or else its name says; None: neither does."""
    if Path(image).is_file():
        with open(image, "rb") as file:
            head = file.read(SIF_START + len(SIF_MAGIC) + SIF_VERSION + 3)
        if head[SIF_START:].startswith(SIF_MAGIC):
            return SIF_ARCHITECTURES.get(head[-3:], "another architecture")
    named = [name for name, words in NAMED.items() if re.search(rf"(?<![a-z\d])({words})(?![a-z\d])", image.lower())]
    return named[0] if len(named) == 1 else None


def unmounted(config: Config, wanted: Sequence[str]) -> Iterator[str]:
    """Paths of what these stages read that no mount brings into the container, as far as the configuration knows."""
    cluster = config.cluster
    if cluster.container == "none":
        return
    inside = [mount.split(":")[1] for mount in cluster.mounts] + [str(Path(config.run.dir).absolute()), str(Path.cwd())]
    for key, path in ranges.paths(config).items():
        reader = next((stage for start, stage in READER.items() if f"{key}.".startswith(f"{start}.")), None)
        if reader in wanted and path.startswith("/") and not any(Path(path).is_relative_to(each) for each in inside):
            yield f"{key}: {path!r} is not in the container, unless the cluster sees to it; see cluster.mounts"
