"""Composing a configuration with Hydra, and turning what Hydra and OmegaConf say about a mistake into one clear line.

The groups come from `bielik_nemo.conf` (the `conf/` folder) and, after it, from the user's own folders; the dataclass
`Config` is the schema onto which they are merged. Hydra's loader is used directly instead of `hydra.compose`: it leaves
no global state, so that composing also works inside another Hydra application.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, get_origin
from urllib.parse import quote

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from bielik_nemo.config import Config
from bielik_nemo.errors import ConfigError
from bielik_nemo.keys import describe, dotted_keys, field_types, nearest, type_at

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONFIGS = "pkg://bielik_nemo.conf"
SCHEMA = "bielik_nemo_schema"


def register_schema() -> None:
    """Make `Config` known to Hydra under the name that conf/config.yaml starts from.

    Hydra lets no override add a name, not even to a table whose names are the user's: those are open.
    """
    schema = OmegaConf.structured(Config)
    for key in dotted_keys(Config):
        if get_origin(type_at(Config, key)) is dict:
            OmegaConf.set_struct(OmegaConf.select(schema, key), False)
    ConfigStore.instance().store(name=SCHEMA, node=schema, provider="bielik_nemo")


def compose_dict(recipe: str = "", overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """Composed configuration, interpolations still in it. Raises `ConfigError` with one line for each wrong override.

    Args:
        recipe: name of an experiment; empty: none.
        overrides: `key=value` or `group=option`, in Hydra's grammar.
        config_dir: the user's own folder of groups, searched after ours.
    """
    lines = [f"experiment={recipe}", *overrides] if recipe else overrides
    parsed = _parse(lines, _loader(config_dir))
    folders = [each for each in parsed if each.key_or_group == "hydra.searchpath"]
    parsed = [each for each in parsed if each not in folders]
    values = [each.value() if isinstance(each.value(), list) else [each.value()] for each in folders]
    loader = _loader(config_dir, [str(folder) for value in values for folder in value])
    problems = [problem for each in parsed if (problem := _problem(each, loader))]
    if problems:
        raise ConfigError("\n".join(problems))
    try:
        lines = [each.input_line for each in parsed]
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
    """Cartesian product of the swept values (`a=1,2 b=range(3)`): for each job a folder name and its overrides.

    The name is made of what is swept, such as `optim.lr=0.0001,run.seed=2`, with characters that do not suit a file
    name as %XX. It is empty when run.dir or run.name is swept, since the jobs then differ in their folder already.
    """
    parsed = _parse(overrides, _loader(config_dir))
    swept = [each.get_key_element() for each in parsed if each.is_sweep_override()]
    try:
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise ConfigError(f"--multirun: {error}") from error
    if {"run.dir", "run.name"} & set(swept):
        swept = []
    parts = [[each for each in job if each.partition("=")[0] in swept] for job in jobs]
    return [(quote(",".join(part), safe="=,+"), job) for part, job in zip(parts, jobs, strict=True)]


def _loader(config_dir: str | Path | None, search_path: Sequence[str] = ()) -> ConfigLoaderImpl:
    setup_globals()
    register_schema()
    path = create_config_search_path(CONFIGS)
    folders = [("--config-dir", str(config_dir))] if config_dir is not None else []
    folders += [("hydra.searchpath", folder.removeprefix("file://")) for folder in search_path]
    for key, folder in reversed(folders):
        if folder.startswith("pkg://"):
            path.append(key, folder, anchor="main")
            continue
        directory = Path(folder).absolute()
        if not directory.is_dir():
            raise ConfigError(f"{key}: found {folder!r}, allowed: a directory of Hydra groups")
        for own in sorted([*directory.glob("*.yaml"), *directory.glob("*/*.yaml")]):
            if files("bielik_nemo.conf").joinpath(own.relative_to(directory)).is_file():
                raise ConfigError(f"{key}: {own} would be hidden by ours of that name, allowed: another name")
        path.append(key, f"file://{directory}", anchor="main")
    return ConfigLoaderImpl(path)


def _parse(overrides: Sequence[str], loader: ConfigLoaderImpl) -> list[Override]:
    parser = OverridesParser.create(config_loader=loader)
    parsed, problems = [], []
    for each in overrides:
        key, equals, value = each.partition("=")
        mark = "'" if '"' in value else '"'
        if not re.fullmatch(r"[+~]*[\w-]+([./@][\w-]+)*", key) or not (equals or key.startswith("~")):
            problems.append(f"{each!r} is not an override; allowed: key=value or group=option")
            continue
        try:
            parsed += parser.parse_overrides([each])
        except HydraException:
            problems.append(
                f"{key}: found {value!r}, allowed: a word, number or [list], or text in quotes; "
                f"text on a command line: '{key}={mark}{value}{mark}'"
            )
    if problems:
        raise ConfigError("\n".join(problems))
    return parsed


def _groups(loader: ConfigLoaderImpl) -> list[str]:
    return [name for name in loader.list_groups("") if name not in ("hydra", "local", "__pycache__")]


def _problem(override: Override, loader: ConfigLoaderImpl) -> str | None:
    """What is wrong with the left side of an override, or with the option that it chooses."""
    key, text = override.key_or_group, override.input_line
    if override.is_sweep_override():
        return f"{key}: found {text.partition('=')[2]!r}, allowed: one value, or several with --multirun"
    if key in _groups(loader):
        value = override.value()
        options = sorted(loader.get_group_options(key))
        wrong = [each for each in (value if isinstance(value, list) else [value]) if each not in options]
        if override.is_add() or override.package is not None:
            return f"{key}: found {text!r}, allowed: {key}=option, option one of {', '.join(options)}"
        if wrong and not override.is_delete():
            found = "null" if wrong[0] is None else repr(wrong[0])
            return f"{key}: found {found}, allowed: {', '.join(options)}{nearest(str(wrong[0]), options)}"
        return None
    if type_at(Config, key) is None:
        return _unknown(key, loader)
    if override.is_delete() or (override.is_add() and not override.is_force_add()):
        return f"{key}: found {text!r}: keys cannot be added or removed, allowed: {key}=value"
    return None


def _unknown(key: str, loader: ConfigLoaderImpl | None) -> str:
    section = key.rpartition(".")[0]
    if key.partition(".")[0] == "hydra":
        return f"{key}: not used here, allowed: hydra.searchpath"
    inside = type_at(Config, section) if section else Config
    names = [*dotted_keys(Config), *(_groups(loader) if loader else [])]
    allowed = ""
    if is_dataclass(inside):
        allowed = f"; allowed: {describe(inside)}"
        names += [f"{section}.{name}" for name in field_types(inside) if section]
    return f"{key}: unknown key{allowed}{nearest(key, names)}"


def _translate(error: Exception, overrides: list[Override], loader: ConfigLoaderImpl | None) -> str:
    """One line for an error of Hydra, OmegaConf or YAML: which file, which key, what was found, what is allowed."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        return f"{mark.name}:{mark.line + 1}: not valid YAML: {error.problem}"
    text = " ".join(str(error).split())
    file = re.match(r"In '(.+?)': ", text)
    where = f"{file[1]}.yaml: " if file and file[1] != "config" else ""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OmegaConfBaseException) and cause.full_key):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, OmegaConfBaseException):
        return where + _translate_key(cause, text, loader)
    in_null = [each.input_line for each in overrides if each.key_or_group.startswith("model.shape")]
    if in_null and isinstance(error, AssertionError | AttributeError):  # all that Hydra says about a part of null
        return f"model.shape: found {in_null[0]!r} while it is null, allowed: with a model that has one (model=tiny)"
    option = re.search(r"Could not (?:find|load) '(\w+)/([^']+)'", text)
    if isinstance(error, MissingConfigException) and option and loader:
        options = sorted(loader.get_group_options(option[1]))
        return f"{where}{option[1]}: found {option[2]!r}, allowed: {', '.join(options)}{nearest(option[2], options)}"
    return text


def _translate_key(error: OmegaConfBaseException, outer: str, loader: ConfigLoaderImpl | None) -> str:
    key, kind, value = error.full_key, type_at(Config, error.full_key), error.value
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        inside = re.match(r"Could not override '(.+?)'", outer)
        if inside and (whole := type_at(Config, inside[1])):  # the key is in the value of an override
            return f"{inside[1]}: found {key!r} in its value, allowed: {describe(whole)}"
        return _unknown(key, loader)
    if isinstance(error, InterpolationResolutionError) and value is None:
        return f"{key}: cannot be resolved: {error.msg.splitlines()[0]}"
    if isinstance(error, MissingMandatoryValue):
        value = "???"
    inside = re.match(r"Error merging override ([\w.]+)=", outer)
    if kind is None and inside and (whole := type_at(Config, inside[1])):  # of an item in a list
        return f"{inside[1]}: found {key}={value!r} in its value, allowed: {describe(whole)}"
    found = "null" if value is None else "no such item" if value == {} else repr(value)
    return f"{key}: found {found}, allowed: {describe(kind) if kind else 'nothing'}"
