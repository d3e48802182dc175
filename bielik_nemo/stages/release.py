"""What is published: the export and its other formats, each with a model card that the manifests tell.

Leaves `hf/`, and of what `quantize` has made `gguf/`, `fp8/`, `nvfp4/`: the same files by hard links (copies where the
file system has none), and in each directory a README.md for the Hugging Face Hub. See report/card.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from packaging.licenses import canonicalize_license_expression

from bielik_nemo import artifacts, report, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.artifacts import Manifest
from bielik_nemo.config import Config
from bielik_nemo.report.card import Facts, card, format_card

CARD = "README.md"
QUALITY = ("held_out_loss", "perplexity", "bits_per_byte", "agreement", "answer_loss", "preference", "rewards")
LEFT_BY = {"evaluate": (*QUALITY, "benchmarks"), "benchmark": ("speed",), "quantize": ("formats",)}
"""What report.json has of stages whose directories may also be there from an earlier pipeline."""
_NAMED = re.compile(r"^license(?:_name)?:\s*[\"']?([\w.+-]+)", re.MULTILINE)


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Link the files and write the cards.

    Raises:
        DataError: a file of the run is damaged.
    """
    here, source = run_dir / "release", run_dir / "export" / "hf"
    facts = gather(config, run_dir)
    link(source, here / "hf")
    artifacts.write_text(here / "hf" / CARD, card(facts))
    for kind, files in formats(facts.numbers, facts.name).items():
        for name, row in files.items():
            origin = run_dir / "quantize" / row["path"]
            link(origin, here / kind / name if origin.is_file() else here / kind)
        artifacts.write_text(here / kind / CARD, format_card(facts, kind, files))
    published = sorted(path.name for path in here.iterdir() if path.is_dir())
    ui.say(f"  {config.release.name}: {', '.join(published)}")
    return {"name": config.release.name, "licence": config.release.licence, "directories": published}


def gather(config: Config, run_dir: Path) -> Facts:
    """What the cards tell, of this pipeline's stages alone: others may have been left by an earlier one."""
    found = {name: Manifest.read(run_dir / name) for name in config.pipeline.stages if name != "release"}
    return Facts(
        name=config.release.name,
        licence=canonicalize_license_expression(config.release.licence),
        base=config.release.base_model or Path(config.model.source).name,
        published=bool(config.release.base_model),
        base_licence=licence_of(Path(config.model.source)),
        stages={name: asdict(manifest) for name, manifest in found.items() if manifest},
        source=Architecture.from_json(run_dir / "import_hf" / "architecture.json"),
        final=Architecture.from_hf(run_dir / "export" / "hf"),
        numbers=numbers(run_dir, config.pipeline.stages),
        chat=has_template(run_dir / "export" / "hf"),
    )


def numbers(run_dir: Path, stages: Sequence[str]) -> dict[str, Any]:
    """What report.json has of these stages."""
    found = report.collect(run_dir)
    told = {key: found[key] for stage, keys in LEFT_BY.items() if stage in stages for key in keys if key in found}
    blend = {stage: rows for stage, rows in found.get("blend", {}).items() if stage in stages}
    return told | {"blend": blend, "packages": found.get("packages", {})}


def formats(found: Mapping[str, Any], name: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Rows of what `quantize` has made, by kind and then by the name that the file or directory has in a release."""
    named: dict[str, dict[str, dict[str, Any]]] = {}
    for row in found.get("formats", {}).get("formats", []):
        kind, _, short = row["name"].partition(":")
        named.setdefault(kind, {})[f"{name}-{short.upper()}.{kind}" if short else name] = row
    return named


def link(origin: Path, target: Path) -> None:
    """Make a file, or all files of a directory, appear under another name without taking room where that works."""
    if origin.is_dir():
        for path in sorted(origin.rglob("*")):
            if path.is_file():
                link(path, target / path.relative_to(origin))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(origin, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(origin, target)


def licence_of(source: Path) -> str:
    """What a checkpoint's directory says of its licence: the name in its card, and files called LICENSE or the like."""
    try:
        text = (source / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    names = list(dict.fromkeys(_NAMED.findall(head)))
    files = sorted(path.name for path in source.glob("*") if re.match(r"(?i)(licen[cs]e|notice)", path.name))
    return ", ".join([*names, *files])


def has_template(directory: Path) -> bool:
    """Whether the tokenizer there has a chat template."""
    if (directory / "chat_template.jinja").is_file():
        return True
    path = directory / "tokenizer_config.json"
    return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("chat_template"))
