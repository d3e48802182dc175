"""What stays is chosen as the docstring of prune/kept.py says; that this is Model Optimizer's order is tested beside
the engine (tests/engine/test_model_optimizer.py)."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from bielik_nemo.architecture import Architecture
from bielik_nemo.errors import CheckpointError, ConfigError
from bielik_nemo.prune.kept import Kept, choose, kept_layers

A = Architecture(
    num_layers=2,
    hidden_size=4,
    ffn_hidden_size=3,
    num_attention_heads=4,
    num_query_groups=2,
    head_dim=2,
    vocab_size=8,
    tie_embeddings=False,
)


def scores(layers=(), units=None, blocks=None) -> SimpleNamespace:
    tensor = torch.tensor(layers, dtype=torch.float64)
    return SimpleNamespace(layers=tensor, units=units or {}, blocks=blocks or {})


def units() -> dict[str, torch.Tensor]:
    """Squared scores: the roots are the small numbers that the tests below speak of."""
    found = {
        "norms.0": [1, 4, 0, 2],
        "norms.1": [1, 0, 3, 2],
        "norms.2": [1, 0, 3, 2],
        "norms.3": [1, 0, 1, 2],
        "decoder.layers.0.mlp": [1, 3, 2],
        "decoder.layers.1.mlp": [3, 1, 2],
        # Heads 0 and 1 are group 0, heads 2 and 3 group 1; two channels each.
        "decoder.layers.0.self_attention": [3, 0, 2, 2, 5, 0, 3, 4],
        "decoder.layers.1.self_attention": [2, 2, 2.5, 0, 0, 1, 1, 1],
    }
    return {name: torch.tensor(values, dtype=torch.float32).square() for name, values in found.items()}


def test_units_stay_in_the_order_of_their_importance():
    """Sums over the four norms: 4 4 7 8, so 3 and 2 stay. Norms of the heads of layer 0: 3, sqrt 8 = 2.83 | 5, 5; of
    layer 1: 2.83, 2.5 | 1, 1.41."""
    target = A.pruned_to(hidden_size=2, ffn_hidden_size=2, num_attention_heads=2)
    kept = choose(scores([1, 1], units()), A, target, [0, 1])
    assert kept.layers == [0, 1]
    assert kept.hidden == [3, 2]
    assert kept.ffn == {0: [1, 2], 1: [0, 2]}
    assert kept.heads[1] == [0, 3]
    assert kept.heads[0][0] == 0 and kept.heads[0][1] in (2, 3)


def test_an_axis_that_is_not_cut_keeps_its_order_and_a_layer_that_goes_is_not_listed():
    kept = choose(scores([1, 1], units()), A, A.pruned_to(num_layers=1, ffn_hidden_size=1), [1])
    assert kept == Kept([1], [0, 1, 2, 3], {1: [0]}, {1: [0, 1, 2, 3]})


def test_heads_compete_within_their_query_group_only():
    """Group 1's heads are all better than group 0's, and still one of each stays."""
    own = units() | {"decoder.layers.0.self_attention": torch.tensor([1.0, 1, 2, 2, 9, 9, 8, 8])}
    assert choose(scores([1, 1], own), A, A.pruned_to(num_attention_heads=2), [0]).heads == {0: [1, 2]}


def test_scores_of_another_shape_are_refused():
    own = units()
    del own["norms.3"]
    with pytest.raises(CheckpointError, match=r"another model's: found 0 of norms\.3, this model has 4"):
        choose(scores([1, 1], own), A, A, [0, 1])


@pytest.mark.parametrize(
    ("layers", "settings", "expected"),
    [
        # The best two of 3 1 2 5 are 5 and 3; of equal ones the first, as Python's stable sort gives Model Optimizer.
        ([3, 1, 2, 5], {"count": 2}, [0, 3]),
        ([3, 1, 2, 5], {"count": 3}, [0, 2, 3]),
        ([3, 1, 2, 5], {"count": 4}, [0, 1, 2, 3]),
        ([1, 1, 1, 1], {"count": 2}, [0, 1]),
        ([1, 2, 2, 1], {"count": 3}, [0, 1, 2]),
        ([3, 1, 2, 5], {"count": 2, "method": "loss_increase"}, [0, 3]),
        # 1 is the worst but among the first two, so 2 goes before it; then 3 goes though it is the best.
        ([3, 1, 2, 5], {"count": 3, "keep_first": 2}, [0, 1, 3]),
        ([3, 1, 2, 5], {"count": 2, "keep_first": 2}, [0, 1]),
        ([3, 1, 2, 0], {"count": 3, "keep_last": 1}, [0, 2, 3]),
        ([3, 1, 2, 0], {"count": 2, "keep_first": 1, "keep_last": 1}, [0, 3]),
        # By hand, whatever the scores.
        ([3, 1, 2, 5], {"count": 2, "drop_layers": [3, 0]}, [1, 2]),
        ([3, 1, 2, 5], {"count": 4, "drop_layers": []}, [0, 1, 2, 3]),
        ([3, 1, 2, 5], {"count": 3, "drop_layers": [2], "keep_first": 2, "keep_last": 1}, [0, 1, 3]),
    ],
)
def test_layers_that_stay(layers, settings, expected):
    assert kept_layers(scores(layers), **settings) == expected


@pytest.mark.parametrize(
    ("settings", "dropped"),
    [
        # Losses of the blocks 01 12 23 34: 12 is the cheapest of all, 34 of those behind the second layer.
        ({}, {1, 2}),
        ({"keep_first": 1}, {1, 2}),
        ({"keep_first": 2}, {3, 4}),
        ({"keep_first": 2, "keep_last": 1}, {2, 3}),
        ({"keep_last": 3}, {0, 1}),
    ],
)
def test_the_cheapest_block_goes(settings, dropped):
    blocks = {2: torch.tensor([0.5, 0.1, 0.4, 0.3]), 1: torch.zeros(5)}
    kept = kept_layers(scores([0, 0, 0, 9, 9], blocks=blocks), 3, "contiguous_block", **settings)
    assert set(range(5)) - set(kept) == dropped


def test_of_equal_blocks_the_last_goes_and_no_block_is_needed_to_keep_all():
    assert kept_layers(scores([0] * 4, blocks={2: torch.ones(3)}), 2, "contiguous_block") == [0, 1]
    assert kept_layers(scores([0] * 4), 4, "contiguous_block") == [0, 1, 2, 3]


def test_blocks_of_a_length_that_was_not_measured():
    blocks = {2: torch.ones(3), 1: torch.ones(4)}
    with pytest.raises(
        ConfigError, match=r"^prune.importance.block_sizes: found \[1, 2\], allowed: with 3, the layers"
    ):
        kept_layers(scores([0] * 4, blocks=blocks), 1, "contiguous_block")
    with pytest.raises(ConfigError, match=r"^prune.importance.block_sizes: found none, allowed: with 1"):
        kept_layers(scores([0] * 4), 3, "contiguous_block")


def test_layers_that_must_stay_and_do_not_fit():
    with pytest.raises(ConfigError, match=r"^prune.keep_first_layers \+ prune.keep_last_layers: found 2 \+ 1, allowed"):
        kept_layers(scores([0] * 4), 2, keep_first=2, keep_last=1)


def test_the_file_says_the_same_again(tmp_path):
    kept = Kept([0, 2], [3, 0], {0: [1], 2: [0]}, {0: [1, 3], 2: [0, 2]})
    kept.to_json(tmp_path / "kept.json")
    assert Kept.from_json(tmp_path / "kept.json") == kept
    assert json.loads((tmp_path / "kept.json").read_text()) == {
        "layers": [0, 2],
        "hidden": [3, 0],
        "ffn": {"0": [1], "2": [0]},
        "heads": {"0": [1, 3], "2": [0, 2]},
    }
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]


@pytest.mark.parametrize("content", [None, "", "[]", '{"layers": [0]}', '{"layers": 1, "hidden": [], "ffn": {}}'])
def test_a_file_that_is_none(content, tmp_path):
    if content is not None:
        (tmp_path / "kept.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"kept\.json: missing, or no list of kept units"):
        Kept.from_json(tmp_path / "kept.json")
