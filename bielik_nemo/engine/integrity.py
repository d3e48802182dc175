"""Digests of a checkpoint's files, by which damage is told before anything of it is loaded.

Torch's reader notices a file that ends too early, and no byte that has changed (torch 2.13).
"""

from __future__ import annotations

import re
from pathlib import Path

from bielik_nemo import artifacts
from bielik_nemo.engine import checkpoint, distributed
from bielik_nemo.errors import UserError

DIGESTS = "digests.json"


def seal(directory: Path) -> None:
    """Record size and SHA-256 of every file of a checkpoint, on all ranks together when all have written.

    Each rank reads its own files, which it still has in memory; rank 0 reads those that are nobody's.
    """
    rank, ranks = distributed.rank(), distributed.world_size()
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != DIGESTS]
    digests = distributed.merged(
        artifacts.digest_files(directory, [path for path in files if _writer(path) % ranks == rank])
    )
    if rank == 0:
        artifacts.write_json(directory / DIGESTS, digests)


def _writer(path: Path) -> int:
    """Torch names a file after the rank that wrote it: `__<rank>_<number>.distcp`."""
    match = re.match(r"__(\d+)_", path.name)
    return int(match[1]) if match else 0


def fault(directory: Path) -> str:
    """What is wrong with a checkpoint that was sealed; empty when nothing is. Needs no other rank."""
    try:
        checkpoint.check(directory)
        digests = artifacts.read_json(directory / DIGESTS)
        for name, entry in digests.items():  # what is quickly seen comes first
            found = (directory / name).stat().st_size
            if found != entry["size"]:
                return f"{directory / name}: found {found} bytes, written were {entry['size']}"
        for name, entry in digests.items():
            if artifacts.file_digest(directory / name) != entry["sha256"]:
                return f"{directory / name}: is not what was written"
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (AttributeError, LookupError, TypeError):
        return f"{directory / DIGESTS}: damaged"
    return ""
