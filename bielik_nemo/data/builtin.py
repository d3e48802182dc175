"""Checkpoints that need no download: what `model.source` may name besides a directory, and how one is put in place."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from bielik_nemo.data import builtin_tasks, inflection
from bielik_nemo.data.builtin_chat import CONVERSATIONS
from bielik_nemo.data.builtin_tasks import INFLECTION, SETS
from bielik_nemo.data.text import PACKAGE_DOCS, read_documents
from bielik_nemo.errors import CheckpointError

PREFIX = "builtin:"
MODELS = ("smollm2", "tiny")
"""`smollm2`: a real 135M-parameter model (see smollm2.py); `tiny`: made in seconds for tests (see tiny.py)."""
TOKENIZERS = ("tiny_bpe",)
"""Beside those of the models: a small one that is learnt in seconds from the package documentation (tiny_bpe.py)."""


def resolve_tokenizer(source: str, workdir: Path) -> Path:
    """Directory of a tokenizer: of a model, see `resolve_model_source`, or one of `TOKENIZERS`."""
    name = source.removeprefix(PREFIX)
    if not source.startswith(PREFIX) or name not in TOKENIZERS:
        return resolve_model_source(source, workdir)
    directory = Path(workdir) / name
    if not directory.is_dir():
        from bielik_nemo.data.tiny_bpe import build

        build(directory)
    return directory


def resolve_model_source(source: str, workdir: Path) -> Path:
    """Hugging Face directory that `model.source` means: itself, or a built-in one, built once as `workdir/<name>`.

    Raises `CheckpointError` when `source` is neither, or when the built-in checkpoint cannot be built.
    """
    name = source.removeprefix(PREFIX)
    if not source.startswith(PREFIX):
        if source and Path(source).is_dir():
            return Path(source)
        raise CheckpointError(_unknown(source, "no such directory"))
    if name not in MODELS:
        raise CheckpointError(_unknown(source, "no such built-in model"))
    directory = Path(workdir) / name
    if not directory.is_dir():  # a directory is there only when it was finished
        # Imported here: they need torch and transformers, which the check of a path does not.
        if name == "smollm2":
            from bielik_nemo.data.smollm2 import build
        else:
            from bielik_nemo.data.tiny import build
        build(directory)
    return directory


@functools.cache
def content_version(source: str) -> str:
    """What decides the content of a built-in model, text, chat or tasks here: a digest that changes when it does."""
    if source == PACKAGE_DOCS:
        texts = [document.text for document in read_documents(source)]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    chat = "builtin_tasks" if source in SETS else "builtin_chat"
    name = chat if source in CONVERSATIONS else source.removeprefix(PREFIX)
    if source == INFLECTION:
        files = [Path(each.__file__).read_text(encoding="utf-8") for each in (builtin_tasks, inflection)]
        return hashlib.sha256("".join([*files, inflection.version()]).encode()).hexdigest()
    module = importlib.import_module(f"bielik_nemo.data.{name}")
    return hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()


@contextlib.contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `directory` when the block ends, and vanishes when it raises.

    Raises `CheckpointError` when `directory` exists with files in it, or cannot be written (a full disk).
    """
    directory = Path(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as beside:
            unfinished = Path(beside) / directory.name  # one level down, since mkdtemp's own mode is 0700
            unfinished.mkdir()
            yield unfinished
            os.replace(unfinished, directory)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: cannot write the checkpoint: {error}") from error


def _unknown(source: str, why: str) -> str:
    allowed = [PREFIX + name for name in MODELS]
    near = difflib.get_close_matches(source, allowed, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return (
        f"model.source: {why}: {source!r}; allowed: a Hugging Face checkpoint directory (config.json, *.safetensors, "
        f"tokenizer files), {' or '.join(allowed)}{hint}"
    )
