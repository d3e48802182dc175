"""What a stage leaves behind: its manifest, digests of its files, and directories that are whole or not there.

A stage is finished when `manifest.json` exists, names its fingerprint, and every file it lists is there with its size.
The manifest is written last and atomically. The fingerprint is the digest of the settings that decide the stage's
result and of its inputs; work that was left behind under another fingerprint is set aside, never deleted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from bielik_nemo import __version__
from bielik_nemo.errors import DataError, UserError

MANIFEST = "manifest.json"
FINGERPRINT = "fingerprint"
CODE = "code.json"
"""Beside a copy of this package that was sent with a job: digest, commit and uncommitted changes."""
_FULL = ("No space left on device", "os error 28", "] . unexpected pos ")
"""What a full disk is called by C, by Rust, and by torch's archive writer, which finds fewer bytes than it wrote."""
PACKAGES = ("torch", "nemo_toolkit", "megatron-core", "nvidia-modelopt", "lightning", "transformers", "nemo_run")


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is old or new, never half, and nothing is left beside it when writing fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None


def digest(value: Any) -> str:
    """Digest of a JSON-like value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_files(root: Path, files: Iterable[Path], known: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """Size, modification time and SHA-256 of files below `root`, by relative path.

    Args:
        root: directory that the names are relative to.
        files: which files.
        known: an earlier result; a file of the same size and time is not read again.
    """
    result = {}
    for path in sorted(files):
        name, stat = path.relative_to(root).as_posix(), path.stat()
        before = (known or {}).get(name, {})
        same = before.get("size") == stat.st_size and before.get("mtime_ns") == stat.st_mtime_ns
        sha256 = before["sha256"] if same else file_digest(path)
        result[name] = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256}
    return result


def content_digest(files: dict[str, dict[str, Any]]) -> str:
    """One digest of the names and contents of files, whatever their times."""
    return digest({name: entry["sha256"] for name, entry in files.items()})


@dataclass
class Manifest:
    """Record of a finished stage.

    Attributes:
        stage: its name.
        fingerprint: digest of `config`, `inputs` and the stage's version.
        config: the settings that decide the result.
        inputs: digest of each input.
        sources: files outside the run that were read, with size, time and digest.
        outputs: files that were written, relative to the stage's directory.
        metrics: what the stage measured.
        seconds: wall time of all attempts that this process knows of.
        changes: of the stage's task beside `config`, by whoever imported it; see recipes/task.py.
        gpus: how many it held, as the configuration says; 0: none.
        price: {per_gpu_hour, currency} of each, where it was known.
    """

    stage: str
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    sources: dict[str, dict[str, dict[str, Any]]]
    outputs: dict[str, dict[str, Any]]
    metrics: dict[str, Any]
    started: str
    seconds: float
    version: str = __version__
    code: str = field(default_factory=lambda: code_version())
    packages: dict[str, str] = field(default_factory=lambda: package_versions())
    changes: dict[str, str] = field(default_factory=dict)
    gpus: int = 0
    price: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> Manifest | None:
        """The manifest of a stage's directory; None where there is none or it is not readable as one."""
        try:
            return cls(**json.loads((directory / MANIFEST).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, directory: Path) -> None:
        """Write the manifest; from here on the stage is finished."""
        write_json(directory / MANIFEST, asdict(self))

    def intact(self, directory: Path) -> bool:
        """Whether every output is there with its recorded size."""
        return all(
            (directory / name).is_file() and (directory / name).stat().st_size == entry["size"]
            for name, entry in self.outputs.items()
        )

    def output_digest(self) -> str:
        """Digest of everything the stage produced."""
        return content_digest(self.outputs)


def code_version() -> str:
    """Git commit of the installed source tree, with `+changes` where it was edited; empty outside a repository.

    Of a copy that was sent with a job also its digest.
    """
    root = Path(__file__).resolve().parent.parent
    if (root / CODE).is_file():
        sent = read_json(root / CODE)
        return f"{sent['commit']}{'+changes' if sent['changes'] else ''} sha256:{sent['digest'][:12]}".strip()

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def package_versions() -> dict[str, str]:
    """Versions of the libraries that do the work."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def open_stage(run_dir: Path, stage: str, fingerprint: str) -> Path:
    """The directory in which a stage works under this fingerprint, with what it left there when it was interrupted.

    Work under another fingerprint is moved to `<run_dir>/superseded/`, and comes back from there when its fingerprint
    does.
    """
    directory = run_dir / stage
    aside = run_dir / "superseded"
    if directory.exists():
        mark = directory / FINGERPRINT
        found = mark.read_text().strip() if mark.is_file() else "unknown"
        if found != fingerprint:
            place = aside / f"{stage}-{found[:12]}"
            shutil.rmtree(place, ignore_errors=True)
            aside.mkdir(exist_ok=True)
            os.replace(directory, place)
    earlier = aside / f"{stage}-{fingerprint[:12]}"
    if not directory.exists() and earlier.exists():
        os.replace(earlier, directory)
    if not directory.exists():
        new = run_dir / f".{stage}.partial"  # a directory without a fingerprint would be nobody's
        write_text(new / FINGERPRINT, fingerprint + "\n")
        os.replace(new, directory)
    return directory


def remove(path: Path) -> None:
    """Remove a file or a directory with all that is in it."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextlib.contextmanager
def locked(run_dir: Path, stage: str = "") -> Iterator[int]:
    """Keep a second pipeline out of a run directory; the lock goes with the process, however it ends.

    With a `stage`, keep only others out of that stage, and whole pipelines out of the run: jobs of one run work side by
    side. Yields the lock's file descriptor: a child process that inherits it holds the lock too.

    Raises:
        UserError: another process holds it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / ".lock", "w") as whole, contextlib.ExitStack() as part:
        _lock(whole, fcntl.LOCK_SH if stage else fcntl.LOCK_EX, f"run.dir={run_dir}")
        if not stage:
            yield whole.fileno()
            return
        own = part.enter_context(open(run_dir / f".lock-{stage}", "w"))
        _lock(own, fcntl.LOCK_EX, f"run.dir={run_dir}: {stage}")
        yield own.fileno()


def _lock(stream: IO[str], kind: int, what: str) -> None:
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{what}: another process is working in this directory") from None
    except OSError as error:  # some file systems of clusters have no locks
        raise UserError(f"{what}: this file system cannot lock files: {error.strerror}") from None


def disk_full(error: BaseException | None) -> bool:
    """Whether a full disk or quota is behind an error; libraries in other languages only say so in words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
