"""Composing a configuration with Hydra, and turning what Hydra and OmegaConf say about a mistake into one clear line.

The groups come from `bielik_nemo.conf` (the `conf/` folder) and, after it, from the user's own folders; the dataclass
`Config` is the schema onto which they are merged. Hydra's loader is used directly instead of `hydra.compose`: it leaves
no global state, so that composing also works inside another Hydra application.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from bielik_nemo.config import Config
from bielik_nemo.errors import ConfigError
from bielik_nemo.keys import describe, dotted_keys, nearest, type_at, without_none

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONFIGS = "pkg://bielik_nemo.conf"
SCHEMA = "bielik_nemo_schema"


def register_schema() -> None:
    """Make `Config` known to Hydra under the name that conf/config.yaml starts from."""
    ConfigStore.instance().store(name=SCHEMA, node=Config, provider="bielik_nemo")


def compose_dict(
    recipe: str = "", overrides: Sequence[str] = (), config_dir: str | Path | None = None
) -> DictConfig:
    """Composed configuration, interpolations still in it. Raises `ConfigError` with one line for each wrong override.

    Args:
        recipe: name of an experiment; empty: none.
        overrides: `key=value` or `group=option`, in Hydra's grammar.
        config_dir: the user's own folder of groups, searched after ours.
    """
    loader = _loader(config_dir)
    overrides = [f"experiment={recipe}" if recipe else None, *overrides]
    parsed = _parse([each for each in overrides if each is not None], loader)
    problems = [problem for each in parsed if (problem := _problem(each, loader))]
    if problems:
        raise ConfigError("\n".join(problems))
    lines = [each.input_line for each in parsed]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # a folder of hydra.searchpath that does not exist
            config = loader.load_configuration("config", lines, run_mode=RunMode.RUN)
    except Exception as error:
        raise ConfigError(_translate(error, parsed, loader)) from error
    with open_dict(config):
        del config["hydra"]
    return config


def to_object(config: DictConfig) -> Config:
    """The dataclass, interpolations resolved."""
    try:
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise ConfigError(_translate(error, [], None)) from error


def to_yaml(config: DictConfig) -> str:
    """YAML, interpolations resolved."""
    to_object(config)  # an interpolation that cannot be resolved is an error that names its key
    return OmegaConf.to_yaml(config, resolve=True)


def expand_sweep(overrides: Sequence[str], config_dir: str | Path | None = None) -> list[tuple[str, list[str]]]:
    """Cartesian product of the swept values (`a=1,2 b=range(3)`): for each job its name and its overrides.

    The name is made of what is swept, such as `optim.lr=0.0001,run.seed=2`, and is fit for a file name.
    """
    parsed = _parse(overrides, _loader(config_dir))
    swept = [each.get_key_element() for each in parsed if each.is_sweep_override()]
    try:
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise ConfigError(f"--multirun: {error}") from error
    named = []
    for job in jobs:
        parts = [each for each in job if each.partition("=")[0] in swept]
        named.append((quote(",".join(parts), safe="=,+"), job))
    return named


def _loader(config_dir: str | Path | None) -> ConfigLoaderImpl:
    setup_globals()
    register_schema()
    path = create_config_search_path(CONFIGS)
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise ConfigError(f"--config-dir: found {str(config_dir)!r}, allowed: a directory of Hydra groups")
        path.append("--config-dir", f"file://{Path(config_dir).absolute()}")
    return ConfigLoaderImpl(path)


def _parse(overrides: Sequence[str], loader: ConfigLoaderImpl) -> list[Override]:
    parser = OverridesParser.create(config_loader=loader)
    parsed, problems = [], []
    for each in overrides:
        try:
            parsed += parser.parse_overrides([each])
        except (OverrideParseException, HydraException):
            key, equals, value = each.partition("=")
            if not equals or not re.fullmatch(r"[\w.@/+~]+", key):
                problems.append(f"{each}: not an override; allowed: key=value or group=option")
            else:
                mark = '"' if '"' not in value else "'"
                problems.append(
                    f"{key}: found {value}, allowed: plain text, or in quotes when it has other characters than letters "
                    f"without accents, digits and -_./:, as in (for the shell) '{key}={mark}{value}{mark}'"
                )
    if problems:
        raise ConfigError("\n".join(problems))
    return parsed


def _groups(loader: ConfigLoaderImpl) -> list[str]:
    return [name for name in loader.list_groups("") if name not in ("hydra", "__pycache__")]


def _problem(override: Override, loader: ConfigLoaderImpl) -> str | None:
    """What is wrong with the left side of an override, and with a swept or group value."""
    key, value = override.key_or_group, override.value()
    if override.is_sweep_override():
        return f"{key}: found several values ({override.get_value_element_as_str()}); allowed: one, or add --multirun"
    if key in _groups(loader):
        if override.is_delete():
            return None
        options = sorted(loader.get_group_options(key))
        wrong = [each for each in (value if isinstance(value, list) else [value]) if each not in options]
        if wrong or override.is_add() or override.package is not None:
            hint = nearest(str(wrong[0]), options) if wrong else ""
            return f"{key}: found {override.input_line!r}, allowed: {key}= {', '.join(options)}{hint}"
        return None
    if key == "hydra.searchpath":
        return None
    if type_at(Config, key) is None:
        return _unknown(key, loader)
    if override.is_delete() or override.is_add() and not override.is_force_add():
        return f"{key}: found {override.input_line!r}; keys cannot be added or removed, allowed: {key}=value"
    return None


def _unknown(key: str, loader: ConfigLoaderImpl | None) -> str:
    groups = _groups(loader) if loader else []
    keys = dotted_keys(Config)
    section = key.rpartition(".")[0]
    inside = type_at(Config, section) if section else Config
    allowed = f"; allowed: {describe(inside)}" if inside else ""
    return f"{key}: unknown key{nearest(key, dict.fromkeys([*keys, *groups]))}{allowed}"


def _translate(error: Exception, overrides: list[Override], loader: ConfigLoaderImpl | None) -> str:
    """One line for an error of Hydra, OmegaConf or YAML: which file, which key, what was found, what is allowed."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        return f"{mark.name}:{mark.line + 1}: not valid YAML: {error.problem}"
    file = re.match(r"In '(.+?)'", str(error))
    where = f"{file[1]}.yaml: " if file and file[1] != "config" else ""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OmegaConfBaseException) and cause.full_key):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, OmegaConfBaseException):
        return where + _translate_key(cause, str(error), loader)
    nullable = [each.key_or_group for each in overrides if each.key_or_group.startswith("model.shape")]
    if isinstance(error, AssertionError | AttributeError) and nullable:  # Hydra cannot set a part of what is null
        return f"{nullable[0]}: model.shape is null, allowed: choose a model with a shape first (such as model=bielik_11b_v3)"
    text = " ".join(str(error).split())
    missing = re.search(r"Could not (?:find|load) '(\w+)/([^']+)'", text)
    if isinstance(error, MissingConfigException) and missing and loader:
        options = sorted(loader.get_group_options(missing[1]))
        hint = nearest(missing[2], options)
        return f"{where}{missing[1]}: found {missing[2]!r}, allowed: {', '.join(options)}{hint}"
    return text


def _translate_key(error: OmegaConfBaseException, outer: str, loader: ConfigLoaderImpl | None) -> str:
    key, kind = error.full_key, type_at(Config, error.full_key)
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        inside = re.match(r"Could not override '(.+?)'", outer)
        if inside and inside[1] != key and type_at(Config, inside[1]):  # a key inside the value of an override
            return f"{inside[1]}: unknown key {key!r} in its value, allowed: {describe(type_at(Config, inside[1]))}"
        return _unknown(key, loader)
    found = repr(error.value)
    if error.value is None and kind is not None and "Interpolation" in type(error).__name__:
        found = error.msg.splitlines()[0]
    elif type(error).__name__ == "MissingMandatoryValue":
        found = "???"
    allowed = describe(without_none(kind) if error.value is not None else kind) if kind else "nothing there"
    return f"{key}: found {found}, allowed: {allowed}"
