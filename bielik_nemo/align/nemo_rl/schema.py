"""NeMo-RL's schema of its configuration, which launch/nemo_rl_schema.py has read from the release that it names."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from bielik_nemo.errors import ConfigError


def schema() -> dict[str, Any]:
    """NeMo-RL's schema, with `version` and `commit` of the release that it is of."""
    return json.loads((resources.files(__package__) / "schema.json").read_text(encoding="utf-8"))


def check(rendered: dict[str, Any]) -> None:
    """Hold a configuration against NeMo-RL's schema.

    Raises:
        ConfigError: a key is unknown, missing or of another type.
    """
    from jsonschema import Draft202012Validator

    known = schema()
    for error in Draft202012Validator(known).iter_errors(rendered):
        while error.context:  # alternatives: of those that are switched on or off, the one that is meant
            others = {each.schema_path[0] for each in error.context if list(each.path)[-1:] == ["enabled"]}
            error = next((each for each in error.context if each.schema_path[0] not in others), error.context[0])
        raise ConfigError(f"NeMo-RL {known['version']}: {error.json_path.removeprefix('$.')}: {error.message[:300]}")
