"""Conversations -> tokens with marks, of which SFT trains the answers' (see chat_sets.py for what it leaves)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bielik_nemo.config import Config
from bielik_nemo.data import chat
from bielik_nemo.stages import chat_sets


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Write every conversation of `sft.sources` as one document; see `chat_sets.write` for errors."""
    sources = config.sft.sources
    return chat_sets.write(config, run_dir / "chat", "sft.sources", sources, chat.conversations, "conversations")
