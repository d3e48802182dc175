"""Every shape that the budgets allow, best first: enumerated exactly, none sampled, none left out without a reason.

The space is the product of four axes, with Model Optimizer's limits by default (nvidia-modelopt 0.43: at least 80 % of
the layers, at least 60 % of a width; here a size at the limit itself is a choice). A shape is a candidate when it
exceeds no budget and comes within `tolerance` of one: what is smaller than all of them ask was cut more than needed.

Two objectives rank the candidates:

- parameters: most first (Model Optimizer's rule); of equals the deeper, then the wider in hidden size, FFN, heads.
- importance: most of `retained` first. Our own heuristic: with s_1 >= s_2 >= ... the scores of an axis's units,

      share(axis, k) = (s_1 + ... + s_k) / (s_1 + s_2 + ...)      retained = product of the four axes' shares

  Layers have their layer scores (below zero counts as zero); hidden channels one list; FFN channels and heads one list
  per layer, whose shares are averaged; heads are kept evenly in each query group, the best of it. It knows nothing of
  how axes interact: the short distillation (ranking.py) decides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.config_prune import Search, Target
from bielik_nemo.errors import ConfigError
from bielik_nemo.prune import latency
from bielik_nemo.prune.latency import Table, Widths
from bielik_nemo.validation.shapes import shape_problems

AXES = {"num_layers": 8, "hidden_size": 6, "ffn_hidden_size": 6, "num_attention_heads": 6}
"""The axes, and the tenths of the source's size that Model Optimizer always leaves."""
BUDGETS = ("max_parameters", "max_memory_gib", "max_latency_ms")
SMALLER, UNMEASURED = "smaller than needed", "not in the latency table"
NEAREST = 3
"""How many of those that were left out are kept for each reason."""

LARGEST = 5_000_000
"""Shapes of a space that is enumerated in less than a minute."""

Shares = Mapping[str, Sequence[float]]
"""Kept share of importance by axis; item k is for k units."""


@dataclass(frozen=True)
class Candidate:
    """One shape and what it costs; `retained` is None without scores, `latency_ms` without bandwidth or table."""

    name: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    parameters: int
    parameters_once: int
    memory_gib: float
    latency_ms: float | None
    retained: float | None = None

    def target(self) -> Target:
        """The sizes alone."""
        return Target(**{axis: getattr(self, axis) for axis in AXES})


@dataclass
class Rejected:
    """How many were left out for one reason, and the nearest of them to being taken."""

    count: int = 0
    nearest: list[tuple[float, int, Widths]] = field(default_factory=list)  # distance, layers, widths

    def add(self, distance: float, layers: int, widths: Widths) -> None:
        """Count one more."""
        self.count += 1
        if len(self.nearest) < NEAREST or distance < self.nearest[-1][0]:
            self.nearest = sorted([*self.nearest, (distance, layers, widths)])[:NEAREST]


@dataclass(frozen=True)
class Result:
    """All candidates, best first, and why the rest of the space is not among them."""

    space: int
    budgets: dict[str, float]
    candidates: list[Candidate]
    counts: dict[str, int]
    nearest: dict[str, list[Candidate]]


def fixed(config: Config, source: Architecture) -> Target:
    """The sizes that are not for the search to choose: `prune.target`, and what `prune.drop_layers` leaves."""
    target, drop = config.prune.target, config.prune.drop_layers
    if drop is None or target.num_layers is not None:
        return target
    return replace(target, num_layers=source.num_layers - len(drop))


def aimed_at(config: Config, candidate: Candidate) -> Config:
    """The configuration that prunes to one candidate."""
    return replace(config, prune=replace(config.prune, target=candidate.target()))


def unusable(config: Config, source: Architecture, candidates: Sequence[Candidate]) -> list[str]:
    """Why any of these cannot be pruned to, or be split over the ranks, as the configuration says."""
    return [
        f"{problem} (candidate {each.name})"
        for each in candidates
        for problem in shape_problems(aimed_at(config, each), source, ["score"])
    ]


def record(result: Result, settings: Search, listed: int) -> dict[str, Any]:
    """The result as JSON has it, with the first `listed` candidates."""
    return {
        "space": result.space,
        "feasible": len(result.candidates),
        "budgets": result.budgets,
        "embeddings": settings.embeddings,
        "objective": settings.objective,
        "candidates": [asdict(each) for each in result.candidates[:listed]],
        "rejected": {
            reason: {"count": count, "nearest": [asdict(each) for each in result.nearest[reason]]}
            for reason, count in result.counts.items()
        },
    }


def budgets(settings: Search) -> dict[str, float]:
    """The budgets that are given, by the name of their key in `prune.search`."""
    return {name: limit for name in BUDGETS if (limit := getattr(settings, name)) is not None}


def axes(source: Architecture, target: Target, settings: Search) -> dict[str, list[int]]:
    """The sizes that each axis may have, ascending.

    Multiples of the divisor (heads: of the query groups too) and the source's own size, within min and max. An axis
    that `target` gives has that size only.

    Raises:
        ConfigError: an axis has none; the nearest reachable sizes are named.
    """
    found, problems = {}, []
    for name, tenths in AXES.items():
        size, axis, wanted = getattr(source, name), getattr(settings, name), getattr(target, name)
        unit = math.lcm(axis.divisor, source.num_query_groups) if name == "num_attention_heads" else axis.divisor
        reachable = [*range(unit, size, unit), size]
        low = -(-size * tenths // 10) if axis.min is None else axis.min
        low, high = (low, size if axis.max is None else axis.max) if wanted is None else (wanted, wanted)
        found[name] = [each for each in reachable if low <= each <= high]
        if not found[name]:
            below, above = [each for each in reachable if each < low], [each for each in reachable if each > high]
            near = " and ".join(str(each) for each in (*below[-1:], *above[:1]))
            asked = f"prune.target.{name}: found {wanted}"
            if wanted is None:
                asked = f"prune.search.{name}: found no size from {low} to {high}"
            problems.append(f"{asked}, allowed: multiples of {unit} and the source's {size}; nearest reachable: {near}")
    if problems:
        raise ConfigError("\n".join(problems))
    return found


def shares(
    layers: Sequence[float],
    hidden: Sequence[float],
    ffn: Sequence[Sequence[float]],
    heads: Sequence[Sequence[float]],
    num_query_groups: int,
) -> Shares:
    """Kept share of importance by axis and number of units, from scores (higher is more important).

    Args:
        layers: one score per layer.
        hidden: one per hidden channel.
        ffn: for each layer one per FFN channel.
        heads: for each layer one per head; heads of a query group stand together.
        num_query_groups: in which heads are ranked; the shares of sizes that are no multiple of it are zero.
    """
    return {
        "num_layers": _share(layers),
        "hidden_size": _share(hidden),
        "ffn_hidden_size": _mean([_share(scores) for scores in ffn]),
        "num_attention_heads": _mean([_grouped(scores, num_query_groups) for scores in heads]),
    }


def find(
    source: Architecture,
    target: Target,
    settings: Search,
    table: Table | None = None,
    shares: Shares | None = None,
    rotated: bool = False,
) -> Result:
    """All shapes within the budgets, best first.

    Args:
        source: the model that is to be cut.
        target: sizes that are fixed.
        settings: axes, budgets and objective; with objective "importance" and no shares, ranked by parameters.
        table: measured latencies; None: analytic.
        shares: see `shares`.
        rotated: whether a narrower hidden stream is rotated (prune.compensation), which unties tied embeddings.

    Raises:
        ConfigError: no budget is given, an axis has no size, or no shape fits the budgets.
    """
    limits = budgets(settings)
    if not limits:
        keys = ", ".join(f"prune.search.{name}" for name in BUDGETS)
        raise ConfigError(f"prune.search: found no budget, allowed: at least one of {keys}")
    choices = axes(source, target, settings)
    space = math.prod(map(len, choices.values()))
    if space > LARGEST:
        raise ConfigError(
            f"prune.search: found {space:,} shapes, allowed: at most {LARGEST:,}; raise the divisors "
            + ", ".join(f"prune.search.{name}.divisor" for name in AXES)
        )
    depths, *widths_of = choices.values()
    feasible: list[Candidate] = []
    rejected: dict[str, Rejected] = {}
    for widths in itertools.product(*widths_of):
        for layers, costs in _costs(source, depths, widths, settings, table, rotated):
            use = {name: costs[name] / limit for name, limit in limits.items() if costs[name] is not None}
            most = max(use, key=use.__getitem__, default="")
            if len(use) < len(limits):
                reason, distance = UNMEASURED, 0.0
            elif use[most] > 1:
                reason, distance = f"above {most}", use[most]
            elif use[most] < 1 - settings.tolerance:
                reason, distance = SMALLER, 1 - use[most]
            else:
                feasible.append(_candidate(layers, widths, costs, shares))
                continue
            rejected.setdefault(reason, Rejected()).add(distance, layers, widths)

    def described(layers: int, widths: Widths) -> Candidate:
        ((_, costs),) = _costs(source, [layers], widths, settings, table, rotated)
        return _candidate(layers, widths, costs, shares)

    counts = {reason: each.count for reason, each in sorted(rejected.items())}
    nearest = {reason: [described(*rest) for _, *rest in rejected[reason].nearest] for reason in counts}
    if not feasible:
        raise ConfigError(_nothing(limits, settings, counts, nearest))
    by_importance = settings.objective == "importance" and shares is not None
    feasible.sort(key=lambda each: _rank(each, settings.embeddings, by_importance), reverse=True)
    return Result(space, limits, feasible, counts, nearest)


def _costs(
    source: Architecture,
    depths: Sequence[int],
    widths: Widths,
    settings: Search,
    table: Table | None,
    rotated: bool,
) -> list[tuple[int, dict[str, Any]]]:
    """What each depth of these widths costs. All counts grow by the same number with each layer."""
    if rotated and widths[0] < source.hidden_size:
        source = replace(source, tie_embeddings=False)
    one, two = (
        (shape.num_parameters(), shape.num_parameters("once"), shape.kv_cache_bytes_per_token())
        for shape in (source.pruned_to(layers, *widths) for layers in (1, 2))
    )
    tokens = settings.batch_size * min(settings.context, source.sliding_window or settings.context)
    found = []
    for layers in depths:
        parameters, once, cache = (a + (layers - 1) * (b - a) for a, b in zip(one, two, strict=True))
        cache *= tokens
        ms = table.milliseconds(layers, widths) if table else latency.analytic_ms(once, cache, settings)
        costs = {
            "parameters": parameters,
            "parameters_once": once,
            "max_parameters": parameters if settings.embeddings == "all" else once,
            "max_memory_gib": latency.memory_gib(parameters, cache, settings),
            "max_latency_ms": ms,
        }
        found.append((layers, costs))
    return found


def _candidate(layers: int, widths: Widths, costs: dict[str, Any], shares: Shares | None) -> Candidate:
    hidden, ffn, heads = sizes = widths
    kept = shares and math.prod(shares[axis][size] for axis, size in zip(AXES, (layers, *sizes), strict=True))
    return Candidate(
        name=f"l{layers}-h{hidden}-f{ffn}-a{heads}",
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        parameters=costs["parameters"],
        parameters_once=costs["parameters_once"],
        memory_gib=costs["max_memory_gib"],
        latency_ms=costs["max_latency_ms"],
        retained=kept,
    )


def _rank(candidate: Candidate, embeddings: str, by_importance: bool) -> tuple:
    """Sorts the better one higher."""
    size = candidate.parameters if embeddings == "all" else candidate.parameters_once
    return (candidate.retained if by_importance else 0, size, *(getattr(candidate, axis) for axis in AXES))


def _nothing(
    limits: dict[str, float], settings: Search, counts: dict[str, int], nearest: dict[str, list[Candidate]]
) -> str:
    """That no shape fits, with the nearest ones below and above."""
    asked = ", ".join(f"prune.search.{name}={limit:,.12g}" for name, limit in limits.items())
    below = [f"{each[0].name} ({_told(each[0], limits, settings)})" for key, each in nearest.items() if key == SMALLER]
    above = [f"{each[0].name} ({_told(each[0], limits, settings)})" for key, each in nearest.items() if "above" in key]
    near = f"nearest reachable below: {' or '.join(below) or 'none'}; above: {' or '.join(above) or 'none'}"
    if UNMEASURED in counts:
        near += f"; {counts[UNMEASURED]:,} shapes are not in {settings.latency_table}"
    return f"{asked}: found no shape within tolerance={settings.tolerance:g} under the divisors; {near}"


def _told(candidate: Candidate, limits: dict[str, float], settings: Search) -> str:
    size = candidate.parameters if settings.embeddings == "all" else candidate.parameters_once
    words = {"max_parameters": f"{size:,} parameters", "max_memory_gib": f"{candidate.memory_gib:.3f} GiB"}
    if candidate.latency_ms is not None:
        words["max_latency_ms"] = f"{candidate.latency_ms:.3f} ms"
    return ", ".join(words[name] for name in limits if name in words)


def _share(scores: Sequence[float]) -> list[float]:
    """Item k: the share of the k highest scores in all of them."""
    return _cumulated(sorted((max(score, 0.0) for score in scores), reverse=True))


def _grouped(scores: Sequence[float], groups: int) -> list[float]:
    """As `_share`, of which the best of every group are kept first."""
    size = len(scores) // groups
    ranked = [sorted(scores[i * size : (i + 1) * size], reverse=True) for i in range(groups)]
    shares = _cumulated([score for same_rank in zip(*ranked, strict=True) for score in same_rank])
    return [share if count % groups == 0 else 0.0 for count, share in enumerate(shares)]


def _cumulated(scores: Sequence[float]) -> list[float]:
    total = math.fsum(scores)
    if not total:  # no scores tell anything: by their number
        return [count / len(scores) for count in range(len(scores) + 1)]
    return [part / total for part in itertools.accumulate(scores, initial=0.0)]


def _mean(lists: Sequence[Sequence[float]]) -> list[float]:
    return [math.fsum(column) / len(lists) for column in zip(*lists, strict=True)]
