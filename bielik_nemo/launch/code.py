"""The code that runs in a job is the code that was checked: a copy of this package, named by what is in it.

Not NeMo-Run's packagers: in 0.11.1 the one for git leaves out what is not committed without a word, and one by patterns
does not lay the configuration out as a wheel does. Commit and uncommitted changes are recorded beside the copy, or with
`launch.changes=refuse` there must be none.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bielik_nemo
from bielik_nemo import artifacts
from bielik_nemo.config import Launch
from bielik_nemo.errors import ConfigError, UserError

VARIABLE = "BIELIK_NEMO_CODE"
"""Names, in a job, the digest of the code that was sent with it."""
_LEFT_OUT = ("__pycache__", "local")
"""Of the configuration `local` is somebody's own, and composed already."""


@dataclass(frozen=True)
class Code:
    """A copy of the code.

    Attributes:
        directory: to be put on PYTHONPATH.
        digest: of names and contents of its files.
        commit: from which it was made; empty outside a repository.
        changes: files that differ from it, as `git status` names them.
    """

    directory: Path
    digest: str
    commit: str
    changes: tuple[str, ...]


def ship(launch: Launch, into: Path) -> Code:
    """Copy this package and `launch.packages` into a folder of `into` that their digest names.

    Raises:
        ConfigError: with `launch.changes=refuse` something is not committed; a package is none.
    """
    packages = dict(_packages(launch))
    commit, changes = "", ()
    for name, source in packages.items():
        found, changed = _git(source)
        commit = found if name == "bielik_nemo" else commit
        changes += changed
    if changes and launch.changes == "refuse":
        raise ConfigError(f"launch.changes: found {len(changes)} files not committed ({changes[0]}), allowed: none")
    partial = into / f".{os.getpid()}.partial"
    try:
        for name, source in packages.items():
            # A wheel has the configuration inside the package, a clone beside it.
            shutil.copytree(source, partial / name, ignore=shutil.ignore_patterns(*_LEFT_OUT), dirs_exist_ok=True)
        digest = _digest(partial)
        target = into / digest[:12]
        if target.exists() and _digest(target) != digest:  # somebody has changed the copy
            shutil.rmtree(target)
        if not target.exists():
            record = {"digest": digest, "commit": commit, "changes": list(changes)}
            artifacts.write_json(partial / artifacts.CODE, record)
            os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Code(target, digest, commit, changes)


def check() -> None:
    """In a job: this package is the copy that was sent with it, unchanged.

    Raises:
        UserError: it is another.
    """
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    directory = Path(bielik_nemo.__file__).resolve().parent.parent
    record = directory / artifacts.CODE
    found = _digest(directory) if record.exists() else "none that was sent"
    if found != wanted:
        raise UserError(
            f"{VARIABLE}: found code {found[:12]} in {directory}, allowed: {wanted[:12]}, which was checked"
        )


def _packages(launch: Launch) -> Iterator[tuple[str, Path]]:
    """Folders to copy, by their place in the copy."""
    import bielik_nemo.conf

    yield "bielik_nemo", Path(bielik_nemo.__file__).parent
    (configuration,) = bielik_nemo.conf.__path__
    yield "bielik_nemo/conf", Path(configuration)
    for index, each in enumerate(launch.packages):
        path = Path(each)
        if not (path / "__init__.py").is_file() or path.name == "bielik_nemo":
            raise ConfigError(f"launch.packages[{index}]: found {each!r}, allowed: a directory with an __init__.py")
        yield path.name, path


def _digest(directory: Path) -> str:
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != artifacts.CODE)
    return artifacts.content_digest(
        artifacts.digest_files(directory, (path for path in files if "__pycache__" not in path.parts))
    )


def _git(directory: Path) -> tuple[str, tuple[str, ...]]:
    """The commit of a tree that git keeps, and what differs from it; nothing for any other."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=directory, capture_output=True, text=True, check=True).stdout

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        if git("ls-files", "."):
            changes = git("-c", "core.quotePath=false", "status", "--porcelain", "--untracked-files=all", ".")
            return git("rev-parse", "--revs-only", "HEAD").strip(), tuple(changes.splitlines())  # none yet: empty
    return "", ()
