from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bielik_nemo.data import tiny


@pytest.fixture(scope="session")
def speaking(random_hf: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`speaking(kind)`: a random checkpoint with the byte tokenizer, whose 263 tokens fill a part of its vocabulary."""
    base = tmp_path_factory.mktemp("speaking")

    def build(kind: str) -> Path:
        if not (base / kind).is_dir():
            shutil.copytree(random_hf(kind), base / kind)
            tiny.byte_tokenizer().save_pretrained(base / kind)
        return base / kind

    return build
