"""Pruning gives, bit for bit, what Model Optimizer alone gives for the same scores, and so does cutting by streaming.

Model Optimizer alone is `modelopt.torch.prune.prune` on a Megatron model, with its own score file: measured by itself,
or written here with few different values, so that nearly every choice is between equals.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import ranks
import torch

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import convert, distributed, minitron, model, streaming
from bielik_nemo.engine.scores import Scores
from bielik_nemo.prune.kept import choose, kept_layers

KINDS = ("llama", "tied", "qwen2")  # untied; tied; tied with biases
AXES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")


@pytest.fixture(autouse=True)
def one_process():
    with distributed.model_parallel():
        yield


def megatron(a: Architecture, directory: Path) -> torch.nn.Module:
    built = model.build(model.gpt_config(a, seq_length=128, fused=False), a)
    convert.load_hf(built, directory, a)
    return built


def model_optimizer(built: torch.nn.Module, a: Architecture, target: Architecture, scores: Path) -> torch.nn.Module:
    """Model Optimizer alone; it measures the scores where `scores` is not there yet."""
    import modelopt.torch.prune as mtp
    from modelopt.torch.prune.plugins.mcore_minitron import get_mcore_minitron_config

    minitron._register_rms_norm()  # Model Optimizer knows no norm that Megatron uses on a CPU

    def calibrate(m: torch.nn.Module) -> None:
        draw = torch.Generator().manual_seed(0)
        for _ in range(3):
            tokens = torch.randint(0, a.vocab_size, (2, 32), generator=draw)
            m(input_ids=tokens, position_ids=torch.arange(32).expand(2, 32), attention_mask=None)

    sizes = {axis: getattr(target, axis) for axis in AXES if getattr(target, axis) != getattr(a, axis)}
    divisors = {f"{axis}_divisor": math.gcd(getattr(target, axis), getattr(a, axis)) for axis in AXES[:3]}
    pruned, _ = mtp.prune(
        built,
        mode=[("mcore_minitron", get_mcore_minitron_config(**divisors))],
        constraints={"export_config": sizes},
        dummy_input=None,
        config={"forward_loop": calibrate, "scores_path": str(scores)},
    )
    return pruned


def equal_scores(a: Architecture, path: Path) -> None:
    """A score file of Model Optimizer's with only four different values."""
    draw = torch.Generator().manual_seed(1)

    def some(count: int) -> torch.Tensor:
        return torch.randint(0, 4, (count,), generator=draw).float()

    activations: dict = {"": {i: some(a.hidden_size) for i in range(2 * a.num_layers)}}
    for i in range(a.num_layers):
        # All channels of a head score alike, so that heads do.
        heads = some(a.num_attention_heads).repeat_interleave(a.head_dim)
        activations |= {
            f"decoder.layers.{i}.self_attention": heads,
            f"decoder.layers.{i}.mlp": some(a.ffn_hidden_size),
        }
    state = {
        "activations_per_rank": [activations],
        "layer_scores": {i + 1: float(i % 2) for i in range(a.num_layers)},
        "sorted_layers": None,
        "top_k_candidates_per_constraint": {},
    }
    torch.save(state, path.with_stem(f"{path.stem}0"))


def ours(path: Path) -> Scores:
    """The scores of Model Optimizer's file."""
    state = torch.load(path.with_stem(f"{path.stem}0"), weights_only=True)
    (activations,) = state["activations_per_rank"]
    norms = {f"norms.{i}": tensor for i, tensor in enumerate(activations.pop("").values())}
    layers = [state["layer_scores"][i + 1] for i in range(len(state["layer_scores"]))]
    return Scores(torch.tensor(layers, dtype=torch.float64), norms | activations)


@pytest.fixture(scope="module")
def score_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scores")


@pytest.mark.parametrize("origin", ["measured", "equal"])
@pytest.mark.parametrize("name", ranks.PRUNINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits(kind, name, origin, inputs, score_files, tmp_path):
    a = Architecture.from_hf(inputs / kind)
    target = a.pruned_to(**ranks.PRUNINGS[name])
    file = score_files / f"{kind}-{origin}-.pth"
    if origin == "equal":
        equal_scores(a, file)
    expected = dict(model_optimizer(megatron(a, inputs / kind), a, target, file).named_parameters())

    scores = ours(file)
    kept = choose(scores, a, target, kept_layers(scores, target.num_layers))
    descending = {key: torch.arange(tensor.numel(), 0, -1).float() for key, tensor in scores.units.items()}
    assert kept != choose(Scores(scores.layers, descending), a, target, range(target.num_layers))  # so this can fail
    found = dict(minitron.prune(megatron(a, inputs / kind), a, target, kept).named_parameters())
    assert found.keys() == expected.keys()
    for parameter in expected:
        assert torch.equal(found[parameter], expected[parameter]), parameter

    streaming.cut(inputs / kind, tmp_path / "cut", a, target, kept, dtype="float32")
    assert Architecture.from_hf(tmp_path / "cut") == target
    streamed = dict(megatron(target, tmp_path / "cut").named_parameters())
    assert streamed.keys() == expected.keys()
    for parameter in expected:
        assert torch.equal(streamed[parameter], expected[parameter]), parameter
