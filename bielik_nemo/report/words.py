"""How the report spells a number. Plain functions, the same for the page and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bielik_nemo.config_outcome import MODELS

COMPRESSED = ("source", "pruned", "distilled")
"""The models between which a gap opens and is closed."""
ROLES = MODELS
"""The models that a run compares, in the order in which they came to be."""

_SPELT = {"sft": "SFT", "dpo": "DPO", "grpo": "GRPO"}

WITHIN, OUTSIDE = "within tolerance", "OUTSIDE TOLERANCE"


def ordered(names: Iterable[str]) -> list[str]:
    """Names of models, each once: those of the pipeline as they came to be, then any others as they are given."""
    others = dict.fromkeys(names)
    return [role for role in ROLES if role in others] + [name for name in others if name not in ROLES]


def model(name: str) -> str:
    """How a model is called in a heading: SFT, Distilled; one that is not the pipeline's by its own name."""
    return _SPELT.get(name, name.capitalize() if name in ROLES else name)


def count(number: int) -> str:
    """Parameters in three to five digits: 134.5M, 11.17B."""
    # Limits are where rounding reaches the next unit: 999,960,000 is 1.00B, not 1000.0M.
    if number >= 999_950_000:
        return f"{number / 1e9:.2f}B"
    if number >= 999_950:
        return f"{number / 1e6:.1f}M"
    return f"{number / 1e3:.1f}k" if number >= 1000 else str(number)


def duration(seconds: float) -> str:
    """9.4 s, 4 min 12 s, 3 h 05 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def change(before: float, after: float) -> str:
    """From 200 to 150 is \N{MINUS SIGN}25.0 %."""
    return f"{100 * (after / before - 1):+.1f} %".replace("-", "\N{MINUS SIGN}")


def percent(share: float) -> str:
    """0.623 is 62.3 %."""
    return f"{100 * share:.1f} %"


def signed_percent(share: float) -> str:
    """0.0123 is +1.23 %; what rounds to nothing has a plus."""
    return f"{round(100 * share, 2) + 0.0:+.2f} %".replace("-", "\N{MINUS SIGN}")


def gigabytes(size: float) -> str:
    """1,234,567,890 bytes are 1.23 GB; below a tenth of one 12.3 MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    ends = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{ends.get(number % 10, 'th') if number % 100 // 10 != 1 else 'th'}"


def perplexity(value: float) -> str:
    """Two decimals, or powers of ten where a model is lost altogether."""
    return f"{value:,.2f}" if value < 1e5 else f"{value:.2e}"


def size(numbers: dict[str, Any], role: str, once: bool = False) -> int | None:
    """Number of parameters of the source, or of a later model (the target, where it was cut), if known."""
    if role not in ROLES:
        return None
    sizes = numbers.get("parameters", {})
    key = "target" if role in COMPRESSED[1:] or (role != "source" and "target" in sizes) else "source"
    return sizes.get(f"{key}_once" if once else key)


def counts_differ(numbers: dict[str, Any]) -> bool:
    """Whether untied embeddings make the two ways of counting parameters differ: then both are told."""
    return any(size(numbers, role) != size(numbers, role, once=True) for role in ROLES)


def sentences(numbers: dict[str, Any], arrow: str = "->") -> list[str]:
    """What became what, as far as the run came: parameters, held-out loss, gap closed."""

    def chain(values: Mapping[str, float | None], spell: Callable[[float], str]) -> str:
        told = [f"{spell(values[role])} {role}" for role in ROLES if values.get(role) is not None]
        return f" {arrow} ".join(told)

    def part(table: str, key: str) -> dict[str, float | None]:
        return {name: each.get(key) for name, each in numbers.get(table, {}).items()}

    sizes = [size(numbers, role) for role in ("source", "pruned")]
    found = [f" {arrow} ".join(count(number) for number in sizes if number) + " parameters"] if any(sizes) else []
    if losses := chain(numbers.get("held_out_loss", {}), "{:.3f}".format):
        found.append(f"held-out loss (nats per token) {losses}")
    if "gap_closed" in numbers:
        found.append(f"{percent(numbers['gap_closed'])} of the gap closed")
    if answers := chain(numbers.get("answer_loss", {}), "{:.3f}".format):
        found.append(f"held-out answers (nats per trained token) {answers}")
    if likelier := chain(part("preference", "likelier"), percent):
        found.append(f"held-out pairs whose chosen answer is the likelier {likelier}")
    if rewards := chain(part("rewards", "reward"), "{:.3f}".format):
        found.append(f"mean reward on held-out tasks {rewards}")
    means = numbers.get("benchmarks", {}).get("mean", {})
    if recovered := chain({name: each.get("value") for name, each in means.items()}, percent):
        found.append(f"kept of the source's benchmarks {recovered}")
    return found


def parity_verdict(parity: dict[str, float]) -> str:
    """Whether the exported checkpoint's logits agree; empty where one of the two numbers is missing."""
    if not parity.keys() >= {"max_abs_logit_diff", "tolerance"}:
        return ""
    return WITHIN if parity["max_abs_logit_diff"] <= parity["tolerance"] else OUTSIDE
