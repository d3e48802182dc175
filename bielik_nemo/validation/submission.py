"""What a job that NeMo-Run starts asks for, and what its script may hold.

NeMo-Run 0.11.1 writes names, paths and values into job scripts as they are, which a shell then reads: what a shell
would not take literally is refused. So is `/nemo_run` in a path: without a container it replaces that by the job's own
folder, and in one it mounts the folder there.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from bielik_nemo.config import Config

LITERAL = re.compile(r"[\w./:,@%+=#-]*", re.ASCII)
PATH = re.compile(r"/[\w./@+=,-]*", re.ASCII)  # Slurm reads % in the names of logs, and # in an sbatch line
MOUNTED = re.compile(r"/[\w./@+=-]*", re.ASCII)
WORD = re.compile(r"\w[\w.-]*", re.ASCII)  # also part of file names
CONSTRAINT = re.compile(r"[\w.,&|*()\[\]-]*", re.ASCII)
NAME = re.compile(r"[A-Z_][A-Z0-9_]*", re.ASCII)  # NeMo-Run makes them so
MOUNT = re.compile(r"/[^:,]*:/[^:,]*(:[a-z+]+)?")
IMAGE = {
    "pyxis": (re.compile(r"[\w./:@+=#-]+", re.ASCII), "a path from the root, or an image as enroot names it"),
    "apptainer": (re.compile(r"/[\w./@+=-]+", re.ASCII), "the path from the root of a .sif file or of a directory"),
}
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|API_?KEY|(^|_)KEY$")
ASSIGNED = re.compile(r"(\w+)=")
OWN = ("PYTHONPATH", "MASTER_ADDR", "MASTER_PORT", "BIELIK_NEMO_CODE", "BIELIK_NEMO_FROM")
"""Names that a job sets itself."""
REPLACED = "/nemo_run"


def problems(config: Config) -> Iterator[str]:
    """What keeps jobs from being handed over under `launch.executor`, as `key: found ..., allowed: ...`."""
    if config.launch.executor == "slurm":
        yield from slurm(config)
        if config.grpo.engine == "nemo_rl" and "grpo" in config.pipeline.stages:
            yield (
                "grpo.engine: found nemo_rl, allowed among jobs: megatron; it submits a job of its own, by "
                "bielik-nemo grpo without launch.executor when the stages before are done"
            )
    elif config.launch.executor:
        yield from here(config)


def here(config: Config) -> Iterator[str]:
    """What keeps `local` and `torchrun` from working on this machine."""
    executor, cluster = config.launch.executor, config.cluster
    if cluster.nodes > 1 or config.launch.nodes:
        yield f"launch.executor: found {executor}, which is for one machine, allowed on more nodes: slurm"
    if cluster.container != "none":
        yield f"cluster.container: found {cluster.container}, allowed with launch.executor={executor}: none"
    run_dir = str(Path(config.run.dir).absolute())
    if executor == "torchrun" and not LITERAL.fullmatch(run_dir):  # NeMo-Run quotes it for a shell that there is not
        yield f"run.dir: found {run_dir!r}, allowed with torchrun: letters, digits and . / : , @ % + = # _ -"


def slurm(config: Config) -> Iterator[str]:
    """What keeps a job from Slurm."""
    cluster = config.cluster
    for name in ("account", "partition"):
        if not getattr(cluster, name):
            yield f"cluster.{name}: found '', allowed: what the cluster's people call it"
    yield from _image(config)
    yield from _literal(config)
    yield from _mounts(config)
    yield from _environment(config)
    for index, argument in enumerate(cluster.srun_args):
        if not argument.startswith("-"):
            yield f"cluster.srun_args[{index}]: found {argument!r}, allowed: an option of srun, such as --mpi=pmix"


def nemo_rl(config: Config) -> Iterator[str]:
    """What keeps the job of NeMo-RL from Slurm."""
    yield from slurm(config)
    if config.cluster.container != "pyxis":
        yield f"cluster.container: found {config.cluster.container}, allowed with grpo.engine=nemo_rl: pyxis"


def _image(config: Config) -> Iterator[str]:
    container, image = config.cluster.container, config.cluster.container_image
    if container == "none":
        return
    form, allowed = IMAGE[container]
    if not form.fullmatch(image):
        yield f"cluster.container_image: found {image!r}, allowed with cluster.container={container}: {allowed}"


def _literal(config: Config) -> Iterator[str]:
    cluster, inside = config.cluster, config.cluster.container != "none"
    if not WORD.fullmatch(config.run.name):
        yield f"run.name: found {config.run.name!r}, allowed in a job's name: letters, digits and . _ -"
    paths = {"run.dir": str(Path(config.run.dir).absolute()), "the current directory": str(Path.cwd())}
    allowed = "letters, digits and . / @ + = _ -" + ("" if inside else " ,")
    for key, path in paths.items():
        if not (MOUNTED if inside else PATH).fullmatch(path):
            yield f"{key}: found {path!r}, allowed in a job script: {allowed}"
    values = {f"cluster.{name}": getattr(cluster, name) for name in ("account", "partition", "cpu_partition", "qos")}
    values |= {f"cluster.{name}": getattr(cluster, name) for name in ("reservation", "python")}
    values |= {f"cluster.mounts[{index}]": mount for index, mount in enumerate(cluster.mounts)}
    values |= {f"cluster.env.{name}": value for name, value in cluster.env.items() if not SECRET.search(name)}
    values["PYTHONPATH (of this shell)"] = os.environ.get("PYTHONPATH", "")  # which a job has too
    for key, value in values.items():
        if not LITERAL.fullmatch(value):
            yield f"{key}: found {value!r}, allowed in a job script: letters, digits and . / : , @ % + = # _ -"
    if not CONSTRAINT.fullmatch(cluster.constraint):
        yield f"cluster.constraint: found {cluster.constraint!r}, allowed: names of features, and & | * ( ) [ ] ,"
    if cluster.python and not re.fullmatch(r"/.*python[^/]*" if not inside else r".*python[^/]*", cluster.python):
        where = "of a Python in the image" if inside else "from the root of a Python, such as that of an environment"
        yield f"cluster.python: found {cluster.python!r}, allowed: the path {where}"
    if not cluster.python and not inside:
        values["this Python (cluster.python)"] = sys.executable
    values |= {"cluster.container_image": cluster.container_image}
    values |= paths | {f"cluster.setup[{index}]": line for index, line in enumerate(cluster.setup)}
    for key, value in values.items():
        if REPLACED in value:
            yield f"{key}: found {value!r}, allowed: without {REPLACED}, which NeMo-Run replaces"


def _mounts(config: Config) -> Iterator[str]:
    container = config.cluster.container
    for index, mount in enumerate(config.cluster.mounts):
        if not MOUNT.fullmatch(mount):
            yield f"cluster.mounts[{index}]: found {mount!r}, allowed: /outside:/inside, both from the root"
        elif container == "apptainer" and mount.count(":") == 2 and mount.rpartition(":")[2] not in ("ro", "rw"):
            yield f"cluster.mounts[{index}]: found {mount!r}, allowed at its end by Apptainer: ro, rw"


def _environment(config: Config) -> Iterator[str]:
    """Names in the environment, and secrets wherever they could be set."""
    cluster = config.cluster
    for name in cluster.env:
        if not NAME.fullmatch(name):
            yield f"cluster.env.{name}: found {name!r}, allowed: capitals, digits and _"
        elif SECRET.search(name):
            yield f"cluster.env.{name}: is written to a file; export {name} in the shell, whose environment Slurm takes"
        elif name in OWN or name.startswith("SLURM_"):
            yield f"cluster.env.{name}: found one that a job sets itself, allowed: any other"
    written = {f"cluster.setup[{index}]": line for index, line in enumerate(cluster.setup)}
    written |= {f"cluster.srun_args[{index}]": argument for index, argument in enumerate(cluster.srun_args)}
    for key, line in written.items():
        for name in filter(SECRET.search, ASSIGNED.findall(line)):
            yield f"{key}: {name} is written to a file; export {name} in the shell, whose environment Slurm takes"
