"""How the report spells a number. Plain functions, the same for the page and the terminal."""

from __future__ import annotations

from typing import Any

COMPRESSED = ("source", "pruned", "distilled")
"""The models between which a gap opens and is closed."""
ROLES = (*COMPRESSED, "sft", "dpo", "grpo", "merged")
"""The models that a run compares, in the order in which they came to be."""

WITHIN, OUTSIDE = "within tolerance", "OUTSIDE TOLERANCE"


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


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    ends = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{ends.get(number % 10, 'th') if number % 100 // 10 != 1 else 'th'}"


def perplexity(value: float) -> str:
    """Two decimals, or powers of ten where a model is lost altogether."""
    return f"{value:,.2f}" if value < 1e5 else f"{value:.2e}"


def size(numbers: dict[str, Any], role: str, once: bool = False) -> int | None:
    """Number of parameters of the source, or of a later model (the target, where it was cut), if known."""
    sizes = numbers.get("parameters", {})
    key = "target" if role in COMPRESSED[1:] or (role != "source" and "target" in sizes) else "source"
    return sizes.get(f"{key}_once" if once else key)


def counts_differ(numbers: dict[str, Any]) -> bool:
    """Whether untied embeddings make the two ways of counting parameters differ: then both are told."""
    return any(size(numbers, role) != size(numbers, role, once=True) for role in ROLES)


def sentences(numbers: dict[str, Any], arrow: str = "->") -> list[str]:
    """What became what, as far as the run came: parameters, held-out loss, gap closed."""
    found = []
    sizes = [size(numbers, role) for role in ("source", "pruned")]
    if any(sizes):
        found.append(f" {arrow} ".join(count(number) for number in sizes if number) + " parameters")
    losses = numbers.get("held_out_loss", {})
    if losses:
        chain = f" {arrow} ".join(f"{loss:.3f} {role}" for role, loss in losses.items())
        found.append(f"held-out loss (nats per token) {chain}")
    if "gap_closed" in numbers:
        found.append(f"{percent(numbers['gap_closed'])} of the gap closed")
    answers = numbers.get("answer_loss", {})
    if answers:
        chain = f" {arrow} ".join(f"{loss:.3f} {role}" for role, loss in answers.items())
        found.append(f"held-out answers (nats per trained token) {chain}")
    likelier = {role: each["likelier"] for role, each in numbers.get("preference", {}).items() if "likelier" in each}
    if likelier:
        chain = f" {arrow} ".join(f"{percent(share)} {role}" for role, share in likelier.items())
        found.append(f"held-out pairs whose chosen answer is the likelier {chain}")
    rewards = {role: each["reward"] for role, each in numbers.get("rewards", {}).items() if "reward" in each}
    if rewards:
        chain = f" {arrow} ".join(f"{reward:.3f} {role}" for role, reward in rewards.items())
        found.append(f"mean reward on held-out tasks {chain}")
    return found


def parity_verdict(parity: dict[str, float]) -> str:
    """Whether the exported checkpoint's logits agree; empty where one of the two numbers is missing."""
    if not parity.keys() >= {"max_abs_logit_diff", "tolerance"}:
        return ""
    return WITHIN if parity["max_abs_logit_diff"] <= parity["tolerance"] else OUTSIDE
