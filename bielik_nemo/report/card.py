"""The model card of a release: Markdown with Hugging Face's front matter, of the manifests and numbers of a run.

Nothing is told that no stage has left: a section without numbers is left out. Of paths only the last part is told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bielik_nemo import __version__
from bielik_nemo.architecture import Architecture
from bielik_nemo.report import benchmarks, card_numbers, story, words
from bielik_nemo.report.card_numbers import cell, change, section, size, spelt, table

HUB_LICENCES = frozenset(
    "apache-2.0 mit bsd-2-clause bsd-3-clause cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-sa-4.0 "
    "cc-by-nc-nd-4.0 gpl-2.0 gpl-3.0 lgpl-2.1 lgpl-3.0 agpl-3.0 mpl-2.0 eupl-1.2 isc unlicense zlib openrail".split()
)
"""Licences by the Hub's own names, which are SPDX's in small letters; any other is `other` there, and named beside."""

_TAGS = {
    "prune": "pruned",
    "distill": "distillation",
    "swap_tokenizer": "tokenizer-transfer",
    "sft": "sft",
    "dpo": "dpo",
    "grpo": "grpo",
    "merge": "merge",
}
_UNITS = {"data": "documents", "chat": "conversations", "preferences": "pairs", "tasks": "tasks"}
_PURPOSES = {"data": "text", "chat": "conversations", "preferences": "preference pairs", "tasks": "tasks"}


@dataclass(frozen=True)
class Facts:
    """What a card tells.

    Attributes:
        name: of the model.
        licence: by SPDX.
        base: the model that it was made of: a name on the Hub, or the last part of a path.
        published: whether `base` is on the Hub.
        base_licence: what the source says of its own licence; "": nothing.
        stages: manifests of the pipeline's finished stages by name, in their order.
        source: shape of that model.
        final: shape of this one.
        numbers: of the run's report, as far as these stages left them.
        chat: whether the tokenizer has a chat template.
    """

    name: str
    licence: str
    base: str
    published: bool
    base_licence: str
    stages: Mapping[str, Mapping[str, Any]]
    source: Architecture
    final: Architecture
    numbers: Mapping[str, Any] = field(default_factory=dict)
    chat: bool = False


def card(facts: Facts) -> str:
    """The README.md of the model itself."""
    parts = (_head, _made, _shape, _data)
    measured = (card_numbers.quality, card_numbers.kept, card_numbers.speed, card_numbers.formats)
    told = [part(facts) for part in parts] + [part(facts.numbers) for part in measured]
    told += [part(facts) for part in (_use, _limits, _licence, _tools)]
    return _front_matter(facts) + "\n" + "\n\n".join(filter(None, told)) + "\n"


def format_card(facts: Facts, kind: str, files: Mapping[str, Mapping[str, Any]]) -> str:
    """The README.md of the model's files in another format.

    Args:
        facts: of the model.
        kind: gguf, fp8 or nvfp4.
        files: rows of quantize/metrics.json by the names that the files have here.
    """
    rows = [
        [f"`{name}`", size(row), spelt(row, "bits_per_weight", ".2f"), spelt(row, "loss", ".4f"), change(row)]
        for name, row in files.items()
    ]
    heads = ["file", "size", "bits per weight", "loss, nats per token", "change"]
    runtimes = ", ".join(dict.fromkeys(row["runtime"] for row in files.values() if row.get("runtime")))
    parts = [
        f"# {facts.name} in {kind.upper()}",
        f"{facts.name}, whose card says how it was made, in another format.",
        table(heads, rows),
        f"Each was loaded and measured with {runtimes} on the same held-out tokens as the model." if runtimes else "",
        _run(kind, next(iter(files))),
        _licence(facts),
    ]
    return _front_matter(facts, kind) + "\n" + "\n\n".join(filter(None, parts)) + "\n"


def languages(stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Languages that sources of data name, each once."""
    rows = (row for stage in _UNITS for row in _sources(stages, stage))
    return list(dict.fromkeys(row["language"] for row in rows if row.get("language")))


def _front_matter(facts: Facts, kind: str = "") -> str:
    known = facts.licence.lower()
    given: dict[str, Any] = {"license": known if known in HUB_LICENCES else "other"}
    if known not in HUB_LICENCES:
        given["license_name"] = known
    given |= {"language": languages(facts.stages), "pipeline_tag": "text-generation"}
    if kind:
        given["tags"] = [kind]
    else:
        given["library_name"] = "transformers"
        given["base_model"] = facts.base if facts.published else ""
        given["tags"] = [tag for stage, tag in _TAGS.items() if stage in facts.stages]
    # JSON is YAML, whatever a name may hold.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in given.items() if value]
    return "\n".join(["---", *lines, "---"]) + "\n"


def _head(facts: Facts) -> str:
    size, before = facts.final.num_parameters(), facts.source.num_parameters()
    of = f"[{facts.base}](https://huggingface.co/{facts.base})" if facts.published else f"`{facts.base}`"
    told = f"{facts.name} has {words.count(size)} parameters. It was made of {of}"
    smaller = f", which has {words.count(before)}: {100 * (1 - size / before):.1f} % fewer" if size < before else ""
    return f"# {facts.name}\n\n{told}{smaller}."


def _made(facts: Facts) -> str:
    steps = story.steps(facts.stages, facts.source, facts.final)
    lines = [f"{i}. **{title}**" + (f": {how}." if how else ".") for i, (title, how) in enumerate(steps, start=1)]
    return section("How it was made", "\n".join(lines))


def _shape(facts: Facts) -> str:
    counts = {
        "parameters": (facts.source.num_parameters(), facts.final.num_parameters()),
        "parameters, one of the two embedding matrices left out": (
            facts.source.num_parameters("once"),
            facts.final.num_parameters("once"),
        ),
    }
    context = {"context, tokens": (facts.source.max_position_embeddings, facts.final.max_position_embeddings)}
    lines = counts | story.sizes(facts.source, facts.final) | context
    rows = [[name, f"{before:,}", f"{after:,}"] for name, (before, after) in lines.items()]
    return section("Architecture", table(["", facts.base.rpartition("/")[2], facts.name], rows))


def _data(facts: Facts) -> str:
    rows = [
        [
            _last(str(row.get("name", ""))),
            _PURPOSES[stage],
            str(row.get("language") or ""),
            f"{row[unit]:,} {unit}" if unit in row else "",
            f"{row['tokens']:,}" if "tokens" in row else "",
        ]
        for stage, unit in _UNITS.items()
        for row in _sources(facts.stages, stage)
    ]
    heads = ["source", "used as", "language", "size", "tokens"]
    drawn = {stage: sum(row["tokens"] for row in rows) for stage, rows in facts.numbers.get("blend", {}).items()}
    told = [f"{tokens:,} tokens in `{stage}`" for stage, tokens in drawn.items()]
    note = f"Of the text training drew {', '.join(told)}." if told else ""
    return section("Data", table(heads, rows), note) if rows else ""


def _use(facts: Facts) -> str:
    if facts.chat:
        ask = """messages = [{"role": "user", "content": "..."}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)"""
    else:
        ask = 'inputs = tokenizer("...", return_tensors="pt")'
    return f"""## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "{facts.name}"  # the directory of this card
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path, torch_dtype="auto")
{ask}
answer = model.generate(**inputs, max_new_tokens=256)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```"""


def _run(kind: str, name: str) -> str:
    command = f"llama-cli -m {name}" if kind == "gguf" else f"vllm serve {name}"
    return f"```\n{command}\n```"


def _limits(facts: Facts) -> str:
    told = ["It can state what is false as if it were true: check what matters."]
    if facts.final.num_parameters() < facts.source.num_parameters():
        told.append("A smaller model keeps less knowledge than the one that it was made of.")
    found = facts.numbers.get("benchmarks", {})
    lost = [row for row in benchmarks.retention(found, benchmarks.newest(found)) if row["verdict"] == "lost"]
    if lost:
        worst = ", ".join(f"{row['name']} ({words.percent(row['value'])} kept)" for row in lost[-3:][::-1])
        told.append(f"It lost most in {worst}.")
    if not facts.stages.keys() & {"sft", "dpo", "grpo"}:
        told.append("It was not taught to follow instructions here.")
    known = languages(facts.stages)
    if known and all(row.get("language") for stage in _UNITS for row in _sources(facts.stages, stage)):
        told.append(f"All that it was trained on here is in {', '.join(known)}; other languages may have suffered.")
    told.append("What it refuses and whom it treats unfairly was not measured.")
    return section("Limits", "\n".join(f"- {line}" for line in told))


def _licence(facts: Facts) -> str:
    base = facts.base.rpartition("/")[2]
    told = f" {base} says of its own: {cell(facts.base_licence)}." if facts.base_licence else ""
    return section("Licence", f"{facts.licence}.{told}")


def _tools(facts: Facts) -> str:
    found = facts.numbers.get("packages", {})
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    return f"Made with bielik_nemo {__version__}" + (f" ({listed})." if listed else ".")


def _sources(stages: Mapping[str, Mapping[str, Any]], stage: str) -> list[dict[str, Any]]:
    return (stages.get(stage, {}).get("metrics") or {}).get("sources") or []


def _last(name: str) -> str:
    return name if name.startswith("builtin:") else Path(name).name
