"""Plain text documents from files, directories, or the environment's own packages, and their held-out split.

Text is kept exactly as it is: strict UTF-8, no Unicode normalisation, no change of line ends.
"""

from __future__ import annotations

import hashlib
import json
import re
import sysconfig
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from bielik_nemo.errors import DataError

PACKAGE_DOCS = "builtin:package-docs"
UNNAMED = "text"
"""What text is called whose language is not named."""
# Left out of the package documentation: ourselves, and what a fresh environment brings in versions of its own.
_NOT_DOCS = {"bielik-nemo", "pip", "setuptools", "wheel"}


@dataclass(frozen=True)
class Document:
    """One text, never blank; `source` is its file or package, `index` its place there (row or document, from 0)."""

    text: str
    source: str
    index: int


def read_documents(path: str | Path, text_key: str = "text") -> Iterator[Document]:
    """Yield the documents of `path`, always in the same order; blank ones are left out.

    `path` is a `.txt` file (one document), a `.jsonl` file (one object per line), a `.parquet` file, a directory of
    such files (all levels, sorted by path), or `builtin:package-docs`: the long descriptions of the Python packages
    installed beside us, sorted by name. `text_key` is the object key or column that holds the text.

    Raises `DataError` while iterating: nothing there, no text in a file, not UTF-8, a bad line, a missing key.
    """
    if str(path) == PACKAGE_DOCS:
        yield from _package_docs()
        return
    for file in files_of(Path(path), tuple(_READERS), f", or {PACKAGE_DOCS}"):
        empty = True
        for index, text in _READERS[file.suffix](file, text_key):
            if text.strip():
                empty = False
                yield Document(text, str(file), index)
        if empty:
            raise DataError(f"{file}: holds no text")


def files_of(path: Path, suffixes: tuple[str, ...], besides: str = "") -> list[Path]:
    """The file that `path` is, or those of a directory on all levels, sorted by path.

    Args:
        path: of a file or a directory.
        suffixes: of the files that are meant.
        besides: what else is allowed, for the error's last words.

    Raises:
        DataError: there is none.
    """
    allowed = f"a {', '.join(suffixes)} file{' or' if not besides else ','} a directory of them{besides}"
    if not path.exists():
        raise DataError(f"{path}: no such file or directory; allowed: {allowed}")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in suffixes and file.is_file())
        if not files:
            raise DataError(f"{path}: no text files in this directory; allowed: {allowed}")
        return files
    if path.suffix not in suffixes:
        raise DataError(f"{path}: unknown kind of text file {path.suffix!r}; allowed: {allowed}")
    return [path]


def is_held_out(document: Document, fraction: float, seed: int) -> bool:
    """Whether `document` belongs to the held-out part, about `fraction` (0..1) of all documents.

    Decided by a hash of the text and `seed` alone: a document keeps its side whatever is added around it, and copies
    are never on both sides, nor are copies that differ in white space, letter case or Unicode form.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"fraction: expected 0..1, got {fraction}")
    digest = hashlib.sha256(f"{seed}\n{normalised(document.text)}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def normalised(text: str) -> str:
    """What a text shares with its copies: NFKC, case folded, every run of white space one space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())  # folding can undo the normal form


def _read_txt(file: Path, text_key: str) -> Iterator[tuple[int, str]]:
    yield 0, _decode(file.read_bytes(), file, line=1, offset=0)


def _read_jsonl(file: Path, text_key: str) -> Iterator[tuple[int, str]]:
    for index, offset, raw in raw_lines(file):
        where = f"{file}:{index + 1}"
        record = json_object(raw, file, index + 1, offset)
        if text_key not in record:
            raise DataError(f"{where}: no key {text_key!r}; found {sorted(record)}")
        yield index, _checked(record[text_key], text_key, where)


def raw_lines(file: Path) -> Iterator[tuple[int, int, bytes]]:
    """The lines of a file that are not blank: index from 0, offset in bytes, bytes."""
    offset = 0
    with file.open("rb") as lines:
        for index, raw in enumerate(lines):
            if raw.strip():
                yield index, offset, raw
            offset += len(raw)


def json_object(raw: bytes, file: Path, line: int, offset: int) -> dict[str, Any]:
    """The object on one line of a JSONL file.

    Args:
        raw: the line.
        file: it stands in.
        line: its number, from 1.
        offset: of its first byte.

    Raises:
        DataError: not UTF-8, not JSON, or not an object; begins with `<file>:<line>: `, and does not quote the line.
    """
    where = f"{file}:{line}"
    text = _decode(raw, file, line, offset)
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error.msg} at column {error.colno}; expected an object") from None
    except (ValueError, RecursionError):  # an integer of thousands of digits; a thousand brackets
        raise DataError(f"{where}: not JSON that can be read: too long a number, or nested too deeply") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}")
    return record


def _read_parquet(file: Path, text_key: str) -> Iterator[tuple[int, str]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            if text_key not in table.schema_arrow.names:
                raise DataError(f"{file}: no column {text_key!r}; found {sorted(table.schema_arrow.names)}")
            index = 0
            for group in range(table.num_row_groups):
                for value in table.read_row_group(group, columns=[text_key])[text_key]:
                    where = f"{file}: row {index}"
                    try:
                        text = value.as_py()
                    except UnicodeDecodeError as error:
                        raise DataError(f"{where}: {text_key!r} is not UTF-8 at byte {error.start}") from None
                    yield index, _checked(text, text_key, where)
                    index += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: not a readable Parquet file: {error}") from error


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def _package_docs() -> Iterator[Document]:
    documents = {}
    # The environment's own directories: sys.path would grow by what libraries vendor once they are imported.
    places = sorted({sysconfig.get_path(kind) for kind in ("purelib", "platlib")})
    for package in metadata.distributions(path=places):
        name = re.sub(r"[-_.]+", "-", package.name or "").lower()
        if not name or name in _NOT_DOCS or name in documents:  # the first on the path is the one in use
            continue
        documents[name] = package.metadata.get("Description") or ""
    blank = {"", "UNKNOWN"}  # old build tools wrote the word
    found = sorted((name, text) for name, text in documents.items() if text.strip() not in blank)
    if not found:
        raise DataError(f"{PACKAGE_DOCS}: no installed package has a description")
    for name, text in found:
        yield Document(text, f"{PACKAGE_DOCS}/{name}", 0)


def _decode(raw: bytes, file: Path, line: int, offset: int) -> str:
    """Text of `raw`, which starts at byte `offset` of `file`, in line `line`."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise DataError(
            f"{file}:{line}: not UTF-8: byte 0x{raw[error.start]:02x} at offset {offset + error.start} ({error.reason})"
        ) from None


def _checked(text: object, text_key: str, where: str) -> str:
    if not isinstance(text, str):
        raise DataError(f"{where}: {text_key!r} must be a string, found {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise DataError(
            f"{where}: {text_key!r} is not valid Unicode: lone surrogate at character {error.start}"
        ) from None
    return text
