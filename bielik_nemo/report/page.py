"""The report as one HTML page: no script, no font, picture or style sheet from elsewhere.

Every text that comes from the run is escaped. A section whose numbers are missing is left out.
"""

from __future__ import annotations

from html import escape
from statistics import median
from typing import Any

from bielik_nemo.report import plots, words
from bielik_nemo.report.numbers import ROLES
from bielik_nemo.report.style import stylesheet

# Nothing may be loaded or run, whatever a sample says: escaping is the first lock, this is the second.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(numbers: dict[str, Any]) -> str:
    """The whole document for the numbers of `collect`."""
    sections = (_quality, _distillation, _architecture, _layers, _samples, _time, _export)
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
    sentence = "; ".join(rest)
    lede = f"<p>{sentence[:1].upper()}{sentence[1:]}.</p>" if sentence else ""
    tiles = "".join(
        f"<div class=tile><dt>{label}</dt><dd><b>{value}</b>{note}</dd></div>" for label, value, note in _tiles(numbers)
    )
    headline = headline[:1].upper() + headline[1:]
    return (
        f"<header>\n<p class=eyebrow>Run report · {name}</p>\n<h1>{headline}</h1>\n{lede}\n"
        + (f"<dl class=tiles>{tiles}</dl>\n" if tiles else "")
        + "</header>"
    )


def _tiles(numbers: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What the headline leaves to be worked out: (label, value, note)."""
    tiles = []
    before, after = words.size(numbers, "source"), words.size(numbers, "pruned")
    if before and after:
        tiles.append(("Size", _change(before, after, relative=True), f"{before - after:,} parameters fewer"))
    if "gap_closed" in numbers:
        loss = numbers["held_out_loss"]
        back, lost = loss["pruned"] - loss["distilled"], loss["pruned"] - loss["source"]
        note = f"{back:.3f} of {lost:.3f} nats won back"
        tiles.append(("Gap closed", words.percent(numbers["gap_closed"]), note))
    if "max_abs_logit_diff" in numbers.get("parity", {}):
        note = words.parity_verdict(numbers["parity"]) or "no tolerance given"
        tiles.append(("Export: logit difference", f"{numbers['parity']['max_abs_logit_diff']:.1e}", note))
    if "seconds" in numbers:
        stages = len(numbers["seconds"])
        note = f"{stages} stage{'s' * (stages > 1)}"
        tiles.append(("Time", words.duration(sum(numbers["seconds"].values())), note))
    return tiles


def _quality(numbers: dict[str, Any]) -> str:
    losses, perplexities = numbers.get("held_out_loss", {}), numbers.get("perplexity", {})
    if not losses:
        return ""
    longest = max(losses.values())
    rows = [
        [
            _model(role),
            f"{losses[role]:.3f}",
            _bar(losses[role] / longest, role),
            words.perplexity(perplexities[role]) if role in perplexities else "",
        ]
        for role in ROLES
        if role in losses
    ]
    tokens = f" over {numbers['held_out_tokens']:,} tokens" if "held_out_tokens" in numbers else ""
    note = f"Mean cross-entropy{tokens} of text that no stage learned from. Less is better."
    heads = ["Model", "Loss<br>nats per token", "", "Perplexity"]
    return _section("Held-out loss", note, _table(heads, rows, "nbn"))


def _distillation(numbers: dict[str, Any]) -> str:
    training, validation = (numbers.get("curve", {}).get(kind, []) for kind in ("training", "validation"))
    losses = numbers.get("held_out_loss", {})
    levels = {role: losses[role] for role in ("pruned", "source") if role in losses}
    panels = []
    for title, unit, rows, key, options in (
        ("KL divergence from the teacher", "nats per token", training, "loss", {"colour": "distilled"}),
        ("Held-out loss", "nats per token", validation, "held_out_loss", {"colour": "distilled", "levels": levels}),
        ("Learning rate", "", training, "lr", {"colour": "muted", "small": True}),
        ("Gradient norm", "before clipping", training, "grad_norm", {"colour": "muted", "small": True}),
    ):
        rows = [row for row in rows if key in row]
        if rows:
            described = f"{title}{', ' * bool(unit)}{unit}, by step"
            svg = plots.curve(described, rows, key, name="distilled", **options)
            panels.append(f"<figure><figcaption><b>{title}</b> {unit}</figcaption>{svg}</figure>")
    if not panels:
        return ""
    last = (training or validation)[-1]
    facts = [f"{last['step']:,} steps"]
    facts += [f"{last['tokens']:,} tokens"] if last.get("tokens") else []
    rates = [row["tokens_per_second"] for row in training if row.get("tokens_per_second")]
    facts += [f"{median(rates):,.0f} tokens per second (median)"] if rates else []
    return _section("Distillation", ", ".join(facts) + ".", f"<div class=panels>{''.join(panels)}</div>")


def _architecture(numbers: dict[str, Any]) -> str:
    shapes = numbers.get("architecture", {})
    if not shapes:
        return ""
    counts = [("parameters", "")]
    if words.counts_differ(numbers):
        counts.append(("parameters, one of the two embedding matrices left out", "_once"))
    lines = [(label, {role: numbers["parameters"][role + key] for role in shapes}) for label, key in counts]
    fields = [name for name, value in next(iter(shapes.values())).items() if value is not None]
    lines += [(f"<code>{name}</code>", {role: shape[name] for role, shape in shapes.items()}) for name in fields]
    rows, same = [], []
    for label, values in lines:
        cells = [_value(values[role]) for role in shapes]
        changed = len(shapes) == 2 and values["source"] != values["target"]
        rows.append([label, *cells, *[_change(**_pair(values)) if changed else ""] * (len(shapes) == 2)])
        same.append(len(shapes) == 2 and not changed)
    heads = ["", *[{"source": "Before", "target": "After"}[role] for role in shapes], *["Difference"] * (len(shapes) == 2)]
    return _section("Architecture", "", _table(heads, rows, "n" * (len(heads) - 1), same))


def _layers(numbers: dict[str, Any]) -> str:
    layers = numbers.get("layers", {})
    if "importance" not in layers:
        return ""
    note = "Block Influence: 1 − the cosine similarity of what enters a layer and what leaves it. Higher is more important."
    svg = plots.layer_bars(layers["importance"], layers.get("dropped", []))
    return _section("Importance of each layer", note, f"<figure class=wide>{svg}</figure>")


def _samples(numbers: dict[str, Any]) -> str:
    blocks = []
    for sample in numbers.get("samples", []):
        answers = "".join(
            f"<div><p class=who>{_model(role)}</p><p class=text dir=auto>{escape(sample[role])}</p></div>"
            for role in ROLES
            if role in sample
        )
        prompt = f"<div class=prompt><p class=who>Prompt</p><p class=text dir=auto>{escape(sample.get('prompt', ''))}</p></div>"
        blocks.append(f"<div class=sample>{prompt}<div class=answers>{answers}</div></div>")
    return _section("How they continue a text", "", "".join(blocks)) if blocks else ""


def _time(numbers: dict[str, Any]) -> str:
    seconds = numbers.get("seconds", {})
    if not seconds:
        return ""
    total, longest = sum(seconds.values()), max(seconds.values())
    rows = [
        [escape(stage), words.duration(value), words.percent(value / total), _bar(value / longest)] if total
        else [escape(stage), words.duration(value), "", ""]
        for stage, value in seconds.items()
    ]
    heads = ["Stage", "Time", "Share", ""]
    return _section("Time per stage", "", _table(heads, rows, "nnb", foot=["Total", words.duration(total), "", ""]))


def _export(numbers: dict[str, Any]) -> str:
    parity = numbers.get("parity", {})
    if "max_abs_logit_diff" not in parity:
        return ""
    tokens = f" over {parity['tokens']:,} tokens" if "tokens" in parity else ""
    allowed = f", where {parity['tolerance']:.0e} is allowed" if "tolerance" in parity else ""
    verdict = words.parity_verdict(parity)
    good = "good" if verdict.islower() else "bad"
    badge = f' <span class="verdict {good}">{verdict.capitalize()}</span>' if verdict else ""
    return _section(
        "Parity of the export",
        "The exported checkpoint is loaded by plain transformers and compared with the Megatron model it came from.",
        f"Largest difference of a logit{tokens}: <b>{parity['max_abs_logit_diff']:.1e}</b>{allowed}.{badge}",
    )


def _footer(numbers: dict[str, Any]) -> str:
    listed = ", ".join(f"{escape(name)} {escape(version)}" for name, version in numbers.get("packages", {}).items())
    return f"<footer>Made with {listed}.</footer>\n" if listed else ""


def _section(title: str, note: str, body: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{f'<p>{note}</p>' if note else ''}{body}\n</section>"
