"""The report as one HTML page: no script, no font, picture or style sheet from elsewhere.

Every text that comes from the run is escaped. A section whose numbers are missing is left out.
"""

from __future__ import annotations

from html import escape
from statistics import median
from typing import Any

from bielik_nemo.report import alignment, markup, plots, rewards, search, words
from bielik_nemo.report.style import stylesheet

# Nothing may be loaded or run, whatever a sample says: escaping is the first lock, this is the second.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(numbers: dict[str, Any]) -> str:
    """The whole document for the numbers of `collect`."""
    sections = (
        _quality,
        alignment.answers,
        rewards.models,
        _pretraining,
        _distillation,
        _longer,
        _texts,
        alignment.training,
        rewards.training,
        _search,
        _architecture,
        _layers,
        _compensation,
        _samples,
        _time,
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


def _quality(numbers: dict[str, Any]) -> str:
    losses, perplexities = numbers.get("held_out_loss", {}), numbers.get("perplexity", {})
    if not losses:
        return ""
    longest = max(losses.values()) or 1.0
    rows = [
        [
            markup.model(role),
            f"{losses[role]:.3f}",
            markup.bar(losses[role] / longest, role),
            words.perplexity(perplexities[role]) if role in perplexities else "",
        ]
        for role in words.ROLES
        if role in losses
    ]
    by_language = numbers.get("held_out_loss_by_language", {})
    tokens = f" over {numbers['held_out_tokens']:,} tokens" if "held_out_tokens" in numbers else ""
    note = f"Mean cross-entropy{tokens} of text that no stage learned from. Less is better."
    heads = ["Model", "Loss<br>nats per token", "", "Perplexity"]
    body = markup.table(heads, ["number", "bar", "number"], rows) + markup.by_model("Language", by_language)
    return markup.section("Held-out loss", note, body)


def _pretraining(numbers: dict[str, Any]) -> str:
    note = "The source was trained further before it was scored, cut and taught; it is this model that is compared."
    return _phase("Continued pre-training", note, numbers.get("pretraining", {}), "Cross-entropy of the source")


def _longer(numbers: dict[str, Any]) -> str:
    note = "The student goes on at another length, where also the held-out loss is another."
    return _phase("Distillation at a longer context", note, numbers.get("curve_long", {}), "Loss at a longer context")


def _phase(heading: str, note: str, curves: dict[str, list], loss: str) -> str:
    """Loss and held-out loss of a phase that is not the first distillation."""
    panels = plots.panels(
        (loss, "nats per token", curves.get("training", []), {"loss": ""}, {}),
        (f"{loss}, held-out text", "nats per token", curves.get("validation", []), {"held_out_loss": ""}, {}),
    )
    return markup.section(heading, note, panels) if panels else ""


def _distillation(numbers: dict[str, Any]) -> str:
    training, validation = (numbers.get("curve", {}).get(kind, []) for kind in ("training", "validation"))
    losses = numbers.get("held_out_loss", {})
    levels = {role: losses[role] for role in ("pruned", "source") if role in losses}
    nats = "nats per token"
    panels = plots.panels(
        (_KL if _only_kl(training) else "Loss, of weighted parts", nats, training, {"loss": ""}, {}),
        ("Held-out loss", nats, validation, {"held_out_loss": ""}, {"levels": levels}),
        ("Agreement", "with the teacher on the likeliest token", training, {"agreement": ""}, {"minor": True}),
        ("Tokens per second", "", training, {"tokens_per_second": ""}, {"minor": True}),
        ("Learning rate", "", training, {"lr": ""}, {"minor": True}),
        ("Gradient norm", "", training, {"grad_norm": ""}, {"minor": True}),
    )
    if not panels:
        return ""
    last = (training or validation)[-1]
    facts = [f"{last['step']:,} steps"]
    facts += [f"{last['tokens']:,} tokens"] if last.get("tokens") else []
    rates = [row["tokens_per_second"] for row in training if row.get("tokens_per_second")]
    facts += [f"{median(rates):,.0f} tokens per second (median)"] if rates else []
    used = [row["mfu"] for row in training if row.get("mfu")]
    facts += [f"{words.percent(median(used))} of the GPUs' peak (median)"] if used else []
    result = numbers.get("distilled_step", last["step"])
    facts += [f"the result is the student of step {result:,}"] if result != last["step"] else []
    return markup.section("Distillation", ", ".join(facts) + ".", panels)


def _texts(numbers: dict[str, Any]) -> str:
    """What each stage that trains drew of each source."""
    blends = numbers.get("blend", {})
    rows = [
        [
            escape(row["name"]),
            escape(row["language"]),
            escape(stage),
            f"{row['tokens']:,}",
            f"{row['epochs']:.2f}",
            words.percent(row["share"]),
            markup.bar(row["share"]),
        ]
        for stage, sources in blends.items()
        for row in sources
    ]
    if not rows:
        return ""
    heads = ["Source", "Language", "Stage", "Tokens drawn", "Epochs", "Share", ""]
    note = "What training drew of each source. Text that is repeated for more than four epochs teaches little."
    return markup.section("Training text", note, markup.table(heads, ["text", "text", *["number"] * 3, "bar"], rows))


_KL = "KL divergence from the teacher"


def _only_kl(training: list[dict[str, Any]]) -> bool:
    """Whether the loss is the KL divergence alone: where agreement is told, so are all parts by name."""
    parts = [(row["loss"], row.get("kl")) for row in training if "agreement" in row and row["loss"] is not None]
    return all(kl is not None and abs(kl - loss) <= 1e-5 * abs(loss) for loss, kl in parts)


def _search(numbers: dict[str, Any]) -> str:
    return search.section(numbers["search"]) if "search" in numbers else ""


def _architecture(numbers: dict[str, Any]) -> str:
    shapes, sizes = numbers.get("architecture", {}), numbers.get("parameters", {})
    if not shapes:
        return ""
    lines = {"parameters": [sizes[role] for role in shapes]}
    if words.counts_differ(numbers):
        lines["parameters, one of the two embedding matrices left out"] = [sizes[f"{role}_once"] for role in shapes]
    for name in next(iter(shapes.values())):
        lines[name] = [shape[name] for shape in shapes.values()]
    lines = {name: values for name, values in lines.items() if any(value is not None for value in values)}
    heads = ["", *("Before" if role == "source" else "After" for role in shapes)]
    rows = [[name, *map(markup.value, values)] for name, values in lines.items()]
    same = None
    if len(shapes) == 2:
        heads.append("Difference")
        same = [before == after for before, after in lines.values()]
        for row, values in zip(rows, lines.values(), strict=True):
            row.append(markup.difference(*values))
    body = markup.table(heads, ["number"] * len(heads[1:]), rows, unchanged=same)
    return markup.section("Architecture", "", body)


_BLOCK_INFLUENCE = (
    "Block Influence: how far a layer turns what passes through it (1 minus the cosine similarity of its "
    "input and output). Higher is more important."
)


def _layers(numbers: dict[str, Any]) -> str:
    layers = numbers.get("layers", {})
    if "importance" not in layers:
        return ""
    method, note = layers.get("method"), _BLOCK_INFLUENCE
    if method == "loss_increase":
        note = "By how much the loss on calibration text rises without the layer, in nats per token."
    if method == "contiguous_block":
        note += " What to drop was chosen by the loss without each block of layers, not by this."
    dropped = layers.get("dropped", [])
    if dropped:
        note += f" Dropped: {', '.join(map(str, sorted(dropped)))}."
    svg = plots.layer_bars(layers["importance"], dropped)
    return markup.section("Importance of each layer", note, f'<figure class="wide">{svg}</figure>')


def _compensation(numbers: dict[str, Any]) -> str:
    if "compensation" not in numbers:
        return ""
    note = (
        "Squared error of the hidden stream relative to the source's, on the calibration text, behind each part of a "
        "kept layer before and after its refit (what lies before it is refitted already)."
    )
    svg = plots.refits(numbers["compensation"])
    return markup.section("Compensation", note, f'<figure class="wide">{svg}</figure>')


def _samples(numbers: dict[str, Any]) -> str:
    def text(who: str, content: str) -> str:
        return f'<p class="who">{who}</p><p class="text" dir="auto">{escape(content)}</p>'

    blocks = []
    for sample in numbers.get("samples", []):
        answers = "".join(
            f"<div>{text(markup.model(role), sample[role])}</div>\n" for role in words.ROLES if role in sample
        )
        prompt = f'<div class="prompt">{text("Prompt", sample.get("prompt", ""))}</div>'
        blocks.append(f'<div class="sample">\n{prompt}\n<div class="answers">\n{answers}</div></div>')
    return markup.section("How they continue a text", "", "\n".join(blocks)) if blocks else ""


def _time(numbers: dict[str, Any]) -> str:
    seconds = numbers.get("seconds", {})
    total = sum(seconds.values())
    if not total:
        return ""
    longest = max(seconds.values())
    rows = [
        [escape(stage), words.duration(value), words.percent(value / total), markup.bar(value / longest)]
        for stage, value in seconds.items()
    ]
    foot = ["Total", words.duration(total), "", ""]
    body = markup.table(["Stage", "Time", "Share", ""], ["number", "number", "bar"], rows, foot)
    return markup.section("Time per stage", "", body)


def _export(numbers: dict[str, Any]) -> str:
    parity = numbers.get("parity", {})
    if "max_abs_logit_diff" not in parity:
        return ""
    tokens = f" over {parity['tokens']:,} tokens" if "tokens" in parity else ""
    allowed = f", where {parity['tolerance']:.0e} is allowed" if "tolerance" in parity else ""
    verdict = words.parity_verdict(parity)
    css = "verdict good" if verdict == words.WITHIN else "verdict bad"
    badge = f' <span class="{css}">{_sentence(verdict)}</span>' if verdict else ""
    note = "The exported checkpoint, loaded by plain transformers, against the Megatron model it came from."
    found = f"Largest difference of a logit{tokens}: <b>{parity['max_abs_logit_diff']:.1e}</b>{allowed}."
    return markup.section("Parity of the export", note, found + badge)


def _footer(numbers: dict[str, Any]) -> str:
    packages = numbers.get("packages", {}).items()
    listed = ", ".join(f"{escape(name)} {escape(version)}" for name, version in packages)
    return f"<footer>Made with {listed}.</footer>\n" if listed else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
