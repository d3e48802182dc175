"""The search against brute force on a small space, by hand, and on the full size.

The small source: 8 layers, hidden 32, FFN 64, 8 heads of 4 in 2 groups, vocabulary 50, untied. Its axes without limits
of their own: at least 80 % of 8 is 7 layers, 60 % of 32 is 20, of 64 is 39, of 8 heads is 5, so 6 in steps of 2.
"""

import itertools
import time
from dataclasses import asdict, replace

import pytest

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config, compose
from bielik_nemo.config_prune import Axis, Search, Target
from bielik_nemo.errors import ConfigError
from bielik_nemo.prune import search
from bielik_nemo.prune.latency import Table
from bielik_nemo.validation.shapes import source_architecture

SOURCE = Architecture(8, 32, 64, 8, 2, 4, 50, False, max_position_embeddings=64)
FINE = {
    "num_layers": Axis(divisor=1, min=4),
    "hidden_size": Axis(divisor=4),
    "ffn_hidden_size": Axis(divisor=8),
    "num_attention_heads": Axis(min=2),
}
SPACE = {
    "num_layers": [4, 5, 6, 7, 8],
    "hidden_size": [20, 24, 28, 32],
    "ffn_hidden_size": [40, 48, 56, 64],
    "num_attention_heads": [2, 4, 6, 8],
}
# A layer of hidden h, FFN f, a heads takes (h + f + a) / 100 ms, all but FFN 48, which was not measured.
MEASURED = Table(
    {(h, f, a): (h + f + a) / 100 for h, f, a in itertools.product(*list(SPACE.values())[1:]) if f != 48},
    {h: h / 10 for h in SPACE["hidden_size"]},
)
SHARES = search.shares(
    [5, 1, 2, 8, 3, 1, 0.5, 7],
    [float(i % 7 + 1) for i in range(32)],
    [[float((i * layer) % 11 + 1) for i in range(64)] for layer in range(8)],
    [[float((i * layer) % 5 + 1) for i in range(8)] for layer in range(8)],
    2,
)


def settings(**values) -> Search:
    return Search(**FINE, context=10, batch_size=3, bits_per_weight=8, memory_bandwidth_gb_s=0.001, **values)


def brute_force(asked: Search, table: Table | None) -> list[str]:
    """Every shape of the space as an architecture of its own, measured one by one."""
    kept = []
    for sizes in itertools.product(*SPACE.values()):
        shape = SOURCE.pruned_to(*sizes)
        counted, once = shape.num_parameters(asked.embeddings), shape.num_parameters("once")
        cache = 2 * sizes[0] * 2 * 4 * 2 * 10 * 3  # K and V, layers, groups, head_dim, 2 bytes, context, batch
        measured = {
            "max_parameters": counted,
            "max_memory_gib": (shape.num_parameters() + cache) / 2**30,
            "max_latency_ms": (once + cache) / 1e6 / 0.001,
        }
        if table:
            measured["max_latency_ms"] = table.milliseconds(sizes[0], sizes[1:])
        limits = {name: getattr(asked, name) for name in measured if getattr(asked, name) is not None}
        if any(measured[name] is None or measured[name] > limit for name, limit in limits.items()):
            continue
        if all(measured[name] < (1 - asked.tolerance) * limit for name, limit in limits.items()):
            continue
        retained = 1.0
        for axis, size in zip(SPACE, sizes, strict=True):
            retained *= SHARES[axis][size]
        first = retained if asked.objective == "importance" else 0
        kept.append(((first, counted, *sizes), "l{}-h{}-f{}-a{}".format(*sizes)))
    return [name for _, name in sorted(kept, reverse=True)]


@pytest.mark.parametrize("objective", ["parameters", "importance"])
@pytest.mark.parametrize(
    "limits, table",
    [
        ({"max_parameters": 50_000.0}, None),
        ({"max_parameters": 48_000.0, "embeddings": "once"}, None),
        ({"max_memory_gib": 55_000 / 2**30}, None),
        ({"max_latency_ms": 55.0}, None),
        ({"max_latency_ms": 8.0}, MEASURED),
        ({"max_parameters": 50_000.0, "max_latency_ms": 8.0}, MEASURED),
        ({"max_parameters": 50_000.0, "max_memory_gib": 55_000 / 2**30, "tolerance": 0.01}, None),
        ({"max_parameters": 50_000.0, "tolerance": 0.0, "max_latency_ms": 54.0}, None),
    ],
)
def test_the_same_candidates_in_the_same_order_as_by_brute_force(limits: dict, table: Table | None, objective: str):
    asked = settings(objective=objective, **limits)
    if limits.get("tolerance") == 0.0:  # only what uses a budget to the last parameter
        limit = SOURCE.pruned_to(7, 28, 56, 6).num_parameters()
        asked = settings(objective=objective, max_parameters=float(limit), tolerance=0.0)
    found = search.find(SOURCE, Target(), asked, table, SHARES)
    expected = brute_force(asked, table)
    assert [each.name for each in found.candidates] == expected and expected
    assert found.space == 5 * 4 * 4 * 4 == len(expected) + sum(found.counts.values())


def test_a_candidate_by_hand():
    """4 layers of hidden 20, FFN 40, 2 heads: Q and output 2 * 20 * 8, K and V the same, FFN 3 * 20 * 40, norms 40:
    3,080; times 4 and + 20 is 12,340; with two matrices of 50 * 20 it is 14,340, with one 13,340.
    Cache: 2 * 4 * 2 * 4 * 2 = 128 bytes a token, 30 tokens: 3,840. At 8 bits 14,340 + 3,840 = 18,180 bytes of memory;
    read are 13,340 + 3,840 = 17,180, at 0.001 GB/s 17.18 ms.
    """
    found = search.find(SOURCE, Target(), settings(max_parameters=15_000.0, tolerance=0.1))
    best = next(each for each in found.candidates if each.name == "l4-h20-f40-a2")
    assert (best.parameters, best.parameters_once) == (14_340, 13_340)
    assert best.memory_gib == 18_180 / 2**30
    assert best.latency_ms == pytest.approx(17.18)
    assert best.retained is None
    assert asdict(best.target()) == dict(zip(SPACE, (4, 20, 40, 2), strict=True)) | {"num_query_groups": None}


def test_a_rotated_stream_has_two_embedding_matrices():
    """Tied, a source of hidden 32 stays tied at 32; narrower and rotated, 50 * 20 parameters are counted twice."""
    tied, asked = replace(SOURCE, tie_embeddings=True), settings(max_parameters=15_000.0, tolerance=0.9)
    sizes = [
        {each.name: each.parameters for each in search.find(tied, Target(), asked, rotated=rotated).candidates}
        for rotated in (False, True)
    ]
    assert [each["l4-h20-f40-a2"] for each in sizes] == [13_340, 14_340]
    widest = f"l4-h{SOURCE.hidden_size}-"
    assert all(sizes[1][name] == size for name, size in sizes[0].items() if name.startswith(widest))


def test_reasons_and_the_nearest_of_each():
    asked = settings(max_parameters=50_000.0, max_latency_ms=52.0)
    found = search.find(SOURCE, Target(), asked)
    assert set(found.counts) <= {"above max_parameters", "above max_latency_ms", search.SMALLER}
    most = found.nearest[search.SMALLER]
    assert len(most) == search.NEAREST
    assert max(most[0].parameters / 50_000, most[0].latency_ms / 52) < 0.95
    assert most[0].parameters >= most[-1].parameters or most[0].latency_ms >= most[-1].latency_ms
    alone = search.find(SOURCE, Target(), settings(max_parameters=50_000.0))
    above = [each.parameters for each in alone.nearest["above max_parameters"]]
    every = [SOURCE.pruned_to(*sizes).num_parameters() for sizes in itertools.product(*SPACE.values())]
    assert above == sorted(size for size in every if size > 50_000)[:3]
    below = [each.parameters for each in alone.nearest[search.SMALLER]]
    assert below == sorted((size for size in every if size < 47_500), reverse=True)[:3]
    unmeasured = search.find(SOURCE, Target(), settings(max_latency_ms=8.0), MEASURED)
    assert unmeasured.counts[search.UNMEASURED] == 5 * 4 * 4  # FFN 48
    assert all(each.latency_ms is None for each in unmeasured.nearest[search.UNMEASURED])


def test_default_limits_are_model_optimizers():
    """At least 80 % of 8 layers: 7 is odd, so 8. 60 % of 32: 20, in steps of 5: 20, 25, 30 and its own 32."""
    asked = Search(hidden_size=Axis(divisor=5), ffn_hidden_size=Axis(divisor=16))
    assert search.axes(SOURCE, Target(), asked) == {
        "num_layers": [8],
        "hidden_size": [20, 25, 30, 32],
        "ffn_hidden_size": [48, 64],
        "num_attention_heads": [6, 8],
    }


def test_limits_of_ones_own_and_fixed_sizes():
    asked = Search(
        num_layers=Axis(divisor=3, max=7),
        hidden_size=Axis(divisor=4, min=10, max=23),
        ffn_hidden_size=Axis(divisor=8, min=63),
        num_attention_heads=Axis(divisor=4, min=1),
    )
    target = Target(num_layers=3)  # below the limit, which is not for what is asked by hand
    assert search.axes(SOURCE, target, asked) == {
        "num_layers": [3],
        "hidden_size": [12, 16, 20],
        "ffn_hidden_size": [64],
        "num_attention_heads": [4, 8],
    }


def test_what_is_not_reachable_under_the_divisors_names_the_nearest():
    asked = settings(max_parameters=50_000.0)
    with pytest.raises(ConfigError) as caught:
        search.find(SOURCE, Target(ffn_hidden_size=50, num_attention_heads=3), asked)
    assert str(caught.value).splitlines() == [
        "prune.target.ffn_hidden_size: found 50, allowed: multiples of 8 and the source's 64; "
        "nearest reachable: 48 and 56",
        "prune.target.num_attention_heads: found 3, allowed: multiples of 2 and the source's 8; "
        "nearest reachable: 2 and 4",
    ]
    with pytest.raises(ConfigError, match=r"prune\.search\.hidden_size: found no size from 21 to 23, .*: 20 and 24$"):
        search.find(SOURCE, Target(), replace(asked, hidden_size=Axis(divisor=4, min=21, max=23)))
    with pytest.raises(ConfigError, match=r"prune\.search\.num_layers: found no size from 9 to 8, .*: 8$"):
        search.find(SOURCE, Target(), replace(asked, num_layers=Axis(min=9)))


def test_a_budget_that_no_shape_meets_names_the_nearest_on_both_sides():
    smallest = SOURCE.pruned_to(4, 20, 40, 2).num_parameters()
    with pytest.raises(ConfigError) as caught:
        search.find(SOURCE, Target(), settings(max_parameters=10_000.0))
    assert str(caught.value) == (
        "prune.search.max_parameters=10,000: found no shape within tolerance=0.05 under the divisors; "
        f"nearest reachable below: none; above: l4-h20-f40-a2 ({smallest:,} parameters)"
    )
    every = sorted(SOURCE.pruned_to(*sizes).num_parameters() for sizes in itertools.product(*SPACE.values()))
    gap = max(range(1, len(every)), key=lambda i: every[i] - every[i - 1])
    low, high = every[gap - 1], every[gap]
    with pytest.raises(ConfigError, match=rf"below: l.* \({low:,} parameters\); above: l.* \({high:,} parameters\)$"):
        search.find(SOURCE, Target(), settings(max_parameters=float(high - 1), tolerance=1e-6))


def test_no_budget_and_too_large_a_space_are_errors():
    with pytest.raises(ConfigError, match=r"prune\.search\.max_parameters, .*max_memory_gib, .*max_latency_ms$"):
        search.find(SOURCE, Target(), settings())
    huge = replace(SOURCE, hidden_size=50_000, ffn_hidden_size=50_000)
    asked = Search(max_parameters=1e9, hidden_size=Axis(), ffn_hidden_size=Axis())
    with pytest.raises(ConfigError, match=r"found 800,080,002 shapes, .* prune\.search\.hidden_size\.divisor"):
        search.find(huge, Target(), asked)


def test_shares_by_hand():
    """Layers 4, 2, 2, -1: of 8, one keeps 4. FFN: [3, 1] and [1, 1] keep 3/4 and 1/2 with one unit: 5/8.

    Heads in two groups [9, 1 | 2, 4]: two heads keep the best of each, 9 + 4 of 16; not 9 + 2.
    """
    found = search.shares([2, -1, 4, 2], [0, 0], [[1, 3], [1, 1]], [[9, 1, 2, 4]], 2)
    assert found["num_layers"] == [0, 0.5, 0.75, 1, 1]
    assert found["hidden_size"] == [0, 0.5, 1]  # of no importance at all: by number
    assert found["ffn_hidden_size"] == [0, 0.625, 1]
    assert found["num_attention_heads"] == [0, 0, 13 / 16, 0, 1]


def test_importance_without_scores_ranks_by_parameters():
    asked = settings(max_parameters=50_000.0)
    by_size = search.find(SOURCE, Target(), asked)
    assert search.find(SOURCE, Target(), replace(asked, objective="importance")) == by_size


def test_a_sliding_window_bounds_the_cache():
    windowed = replace(SOURCE, model_type="mistral", sliding_window=5)
    asked = settings(max_memory_gib=1e-4, tolerance=0.99)
    whole, short = (search.find(source, Target(), asked).candidates[0] for source in (SOURCE, windowed))
    cache = 2 * whole.num_layers * 2 * 4 * 2 * 3  # bytes of one position in the batch of 3
    assert whole.memory_gib - short.memory_gib == pytest.approx(5 * cache / 2**30)


def test_layers_dropped_by_hand_fix_their_number():
    config = Config()
    assert search.fixed(config, SOURCE) == Target()
    config.prune.drop_layers = [1, 2]
    assert search.fixed(config, SOURCE) == Target(num_layers=6)
    config.prune.target.num_layers = 5  # a contradiction that validation tells
    assert search.fixed(config, SOURCE).num_layers == 5


@pytest.fixture(scope="module")
def bielik() -> Architecture:
    return source_architecture(compose("bielik_minitron_7b"))


def test_the_full_space_is_enumerated_in_under_ten_seconds(bielik: Architecture):
    """11 depths, hidden 2464 to 4096 by 16: 103, FFN 8608 to 14336 by 32: 180, 24 or 32 heads: 407,880 shapes."""
    asked = Search(max_parameters=7.35e9, embeddings="once")
    asked.num_layers.divisor, asked.hidden_size.divisor, asked.ffn_hidden_size.divisor = 1, 16, 32
    start = time.process_time()
    found = search.find(bielik, Target(), asked)
    assert found.space == 407_880
    assert time.process_time() - start < 10
    asked.hidden_size.divisor, asked.ffn_hidden_size.divisor = 64, 128
    assert search.find(bielik, Target(), asked).space == 11 * 26 * 45 * 2


def test_the_reports_experiment_is_among_the_first_six(bielik: Architecture):
    """7.35B with one embedding matrix; arXiv 2603.11881 chose 40 layers, FFN 11264: 7,346,130,944 parameters."""
    found = search.find(bielik, Target(), Search(max_parameters=7.35e9, embeddings="once"))
    names = [each.name for each in found.candidates[:6]]
    assert "l40-h4096-f11264-a32" in names
    chosen = found.candidates[names.index("l40-h4096-f11264-a32")]
    assert (chosen.parameters_once, chosen.parameters) == (7_346_130_944, 7_477_727_232)
