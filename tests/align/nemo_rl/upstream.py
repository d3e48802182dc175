"""NeMo-RL itself, from a checkout of the release that schema.json names, where the environment says where one is."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = os.environ.get("NEMO_RL_CHECKOUT", "")
needed = pytest.mark.skipif(not CHECKOUT, reason="NEMO_RL_CHECKOUT names no checkout of NeMo-RL")


def defined(file: str, names: tuple[str, ...], given: dict[str, Any]) -> dict[str, Any]:
    """Definitions of a file of the checkout, without what else it imports."""
    tree = ast.parse((Path(CHECKOUT) / file).read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", None) in names]
    exec(compile(tree, file, "exec"), given)
    return {name: given[name] for name in names}
