"""The report as one HTML page: no script, no font, picture or style sheet from elsewhere.

Every text that comes from the run is escaped. A section whose numbers are missing is left out.
"""

from __future__ import annotations

from html import escape
from typing import Any

from bielik_nemo.report import (
    alignment,
    benchmarks,
    cost,
    formats,
    markup,
    quality,
    rewards,
    search,
    shape,
    speed,
    tokenizers,
    training,
    words,
)
from bielik_nemo.report.style import stylesheet

# Nothing may be loaded or run, whatever a sample says: escaping is the first lock, this is the second.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


_TOLD = 3
"""Sentences below the headline; the rest is in the first card."""


def page(numbers: dict[str, Any]) -> str:
    """The whole document for the numbers of `collect`."""
    sections = (
        quality.by_stage,
        benchmarks.section,
        speed.section,
        formats.section,
        quality.section,
        alignment.answers,
        rewards.models,
        training.section,
        alignment.training,
        rewards.training,
        _search,
        shape.section,
        tokenizers.section,
        _samples,
        cost.section,
        _export,
    )
    body = "\n".join(part for part in (section(numbers) for section in sections) if part)
    name = escape(numbers["run"])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{name} · run report</title>
<style>
{stylesheet()}</style>
</head>
<body>
{_header(numbers, name)}
<main>
{body}
</main>
{_footer(numbers)}</body>
</html>
"""


def _header(numbers: dict[str, Any], name: str) -> str:
    headline, *rest = words.sentences(numbers, arrow="→") or ["No stage has finished yet"]
    rest = rest[:_TOLD] if len(rest) <= _TOLD else [*rest[: _TOLD - 1], rest[-1]]
    lede = f'<p class="lede">{_sentence("; ".join(rest))}.</p>\n' if rest else ""
    tiles = "".join(
        f'<div class="tile"><dt>{label}</dt><dd><b>{value}</b>{note}</dd></div>\n'
        for label, value, note in _tiles(numbers)
    )
    tiles = f'<dl class="tiles">\n{tiles}</dl>\n' if tiles else ""
    title = f'<p class="eyebrow">Run report · {name}</p>\n<h1>{_sentence(headline)}</h1>'
    return f"<header>\n{title}\n{lede}{tiles}</header>"


def _tiles(numbers: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What the headline leaves to be worked out: (label, value, note)."""
    tiles = []
    before, after = words.size(numbers, "source"), words.size(numbers, "pruned")
    if before and after:
        tiles.append(("Size", words.change(before, after), f"{words.count(before - after)} parameters fewer"))
    if "gap_closed" in numbers:
        loss = numbers["held_out_loss"]
        back, lost = loss["pruned"] - loss["distilled"], loss["pruned"] - loss["source"]
        note = f"{back:.3f} of {lost:.3f} nats per token"
        tiles.append(("Gap closed", words.percent(numbers["gap_closed"]), note))
    if {"tokens", "bytes_per_token"} <= numbers.get("teacher_cache", {}).keys():
        size, tokens = (numbers["teacher_cache"][key] for key in ("bytes_per_token", "tokens"))
        tiles.append(("Teacher's cache", f"{size:.1f} bytes", f"per token, of {tokens:,.0f} tokens"))
    if "max_abs_logit_diff" in numbers.get("parity", {}):
        note = words.parity_verdict(numbers["parity"]) or "no tolerance given"
        tiles.append(("Export, logit difference", f"{numbers['parity']['max_abs_logit_diff']:.1e}", note))
    if "seconds" in numbers:
        stages = len(numbers["seconds"])
        note = f"{stages} stage{'s' * (stages > 1)}"
        tiles.append(("Time", words.duration(sum(numbers["seconds"].values())), note))
    return tiles


def _search(numbers: dict[str, Any]) -> str:
    return search.section(numbers["search"]) if "search" in numbers else ""


def _samples(numbers: dict[str, Any]) -> str:
    def text(who: str, content: str) -> str:
        return f'<p class="who">{who}</p><p class="text" dir="auto">{escape(content)}</p>'

    blocks = []
    for sample in numbers.get("samples", []):
        answers = "".join(
            f"<div>{text(markup.model(name), sample[name])}</div>\n"
            for name in words.ordered(sample)
            if name != "prompt"
        )
        prompt = f'<div class="prompt">{text("Prompt", sample.get("prompt", ""))}</div>'
        blocks.append(f'<div class="sample">\n{prompt}\n<div class="answers">\n{answers}</div></div>')
    return markup.section("How they continue a text", "", "\n".join(blocks)) if blocks else ""


def _export(numbers: dict[str, Any]) -> str:
    parity = numbers.get("parity", {})
    if "max_abs_logit_diff" not in parity:
        return ""
    tokens = f" over {parity['tokens']:,} tokens" if "tokens" in parity else ""
    allowed = f", where {parity['tolerance']:.0e} is allowed" if "tolerance" in parity else ""
    verdict = words.parity_verdict(parity)
    kind = "good" if verdict == words.WITHIN else "bad"
    badge = f" {markup.verdict(_sentence(verdict), kind)}" if verdict else ""
    note = "The exported checkpoint, loaded by plain transformers, against the Megatron model it came from."
    found = f"Largest difference of a logit{tokens}: <b>{parity['max_abs_logit_diff']:.1e}</b>{allowed}."
    return markup.section("Parity of the export", note, found + badge)


def _footer(numbers: dict[str, Any]) -> str:
    packages = numbers.get("packages", {}).items()
    listed = ", ".join(f"{escape(name)} {escape(version)}" for name, version in packages)
    return f"<footer>Made with {listed}.</footer>\n" if listed else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
