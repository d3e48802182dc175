"""What a job that is submitted to Slurm asks for, and what its script may hold.

NeMo-Run 0.11.1 writes names, paths and values into job scripts as they are, which a shell then reads: what a shell
would not take literally is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from bielik_nemo.config import Config

LITERAL = re.compile(r"[\w./:,@%+=#-]*", re.ASCII)
NAME = re.compile(r"[A-Z_][A-Z0-9_]*", re.ASCII)  # NeMo-Run makes them so
TIME = re.compile(r"(\d+-)?\d{1,2}:\d\d:\d\d")
MOUNT = re.compile(r"/[^:,]*:/[^:,]*(:[a-z+]+)?")
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|API_?KEY|(^|_)KEY$")


def problems(config: Config) -> Iterator[str]:
    """What keeps a job from being submitted, as `key: found ..., allowed: ...`."""
    cluster = config.cluster
    named = {f"cluster.{name}": getattr(cluster, name) for name in ("account", "partition", "container_image")}
    for key, value in named.items():
        if not value:
            yield f"{key}: found '', allowed: what the cluster's people call it"
    if not TIME.fullmatch(cluster.time):
        yield f"cluster.time: found {cluster.time!r}, allowed: hours:minutes:seconds, such as 04:00:00"
    named |= {"run.name": config.run.name, "run.dir": str(Path(config.run.dir).absolute())}
    named |= {f"cluster.mounts[{i}]": mount for i, mount in enumerate(cluster.mounts)}
    named |= {f"cluster.env.{name}": value for name, value in cluster.env.items() if not SECRET.search(name)}
    for key, value in named.items():
        if not LITERAL.fullmatch(value):
            yield f"{key}: found {value!r}, allowed in a job script: letters, digits and . / : , @ % + = # _ -"
    for i, mount in enumerate(cluster.mounts):
        if not MOUNT.fullmatch(mount):
            yield f"cluster.mounts[{i}]: found {mount!r}, allowed: /outside:/inside, both from the root"
    for name in cluster.env:
        if not NAME.fullmatch(name):
            yield f"cluster.env.{name}: found {name!r}, allowed: capitals, digits and _"
        elif SECRET.search(name):
            yield f"cluster.env.{name}: is written to a file; export {name} in the shell, whose environment Slurm takes"
