"""Preference pairs -> tokens with marks (see chat_sets.py for what it leaves).

Documents 2i and 2i + 1 are the prompt of pair i with its chosen and with its rejected answer; the answer is marked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bielik_nemo.config import Config
from bielik_nemo.data import chat
from bielik_nemo.stages import chat_sets


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Write both answers of every pair of `dpo.sources`; see `chat_sets.write` for errors."""
    return chat_sets.write(config, run_dir / "preferences", "dpo.sources", config.dpo.sources, chat.pairs, "pairs")
