"""Settings as NeMo-Run's configs, and what a config stands for."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import fiddle as fdl
import nemo_run as run


def configured(value: Any) -> Any:
    """Dataclasses, also in lists, as configs whose fields can be changed and which make them when they are built."""
    if is_dataclass(value):
        given = {each.name: configured(getattr(value, each.name)) for each in fields(value)}
        return run.Config(type(value), **given)
    return [configured(each) for each in value] if isinstance(value, list) else value


def known(value: Any) -> Any:
    """What a config makes, made now; any other value as it is."""
    return fdl.build(value) if isinstance(value, fdl.Buildable) else value
