"""The rows of a `metrics.jsonl`, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bielik_nemo.errors import DataError
from bielik_nemo.report.files import numbers_of, parse

_TRAINING = ("step", "loss", "kl", "agreement", "lr", "grad_norm", "tokens", "tokens_per_second", "mfu", "seconds")
_PREFERENCES = ("accuracy", "margin", "chosen_log_ratio", "rejected_log_ratio")
_REWARDS = ("chosen_reward", "rejected_reward")
_ANSWERS = ("reward", "correct", "unverifiable", "answer_tokens", "wrong_tokens", "cut")
_POLICY = ("signal", "clipped", "entropy", "mismatch")
_HELD_OUT = ("loss", *_PREFERENCES, *_ANSWERS, "reward_se")
_COLUMNS = (*_TRAINING, *_PREFERENCES, *_REWARDS, *_ANSWERS, *_POLICY, *(f"held_out_{name}" for name in _HELD_OUT))
_TABLES = ("held_out_loss_by_source", "held_out_loss_by_language", "held_out_reward_by_source")
_KINDS = {"loss": "training", "held_out_loss": "validation", "held_out_reward": "validation"}
"""What a row is of which one of these is told."""


def curve(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Training and validation rows by rising step. A resumed run repeats steps: the later line counts."""
    found: dict[str, dict] = {"training": {}, "validation": {}}
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            content = parse(path, line, number)
        except DataError:
            if number == len(lines):  # no newline ends it: the run was killed while it wrote
                break
            raise
        where = f"{path}: line {number}"
        row = numbers_of(where, content, _COLUMNS, keep_null=True)
        if row.get("step") is None:
            raise DataError(f"{where}: step: found nothing, allowed: a number")
        for name in _TABLES:
            if table := numbers_of(where, content.get(name), content.get(name) or (), f"{name}."):
                row[name] = table
        for key, kind in _KINDS.items():
            if key in row:
                found[kind][row["step"]] = row
    return {kind: [rows[step] for step in sorted(rows)] for kind, rows in found.items() if rows}
