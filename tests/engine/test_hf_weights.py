"""Hugging Face tensors <-> Megatron parameters: the cuts by hand, and the round trip at every layout.

The round trip's shape is awkward on purpose: 8 heads of 6 channels on a hidden size of 20, 4 query groups, and a
vocabulary of 131 padded to 256, of which the third of four ranks holds 3 real rows and the fourth none.
"""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine.hf_weights import Layout, Read, hf_names, split_dim, to_hf, to_megatron

LLAMA = Architecture(3, 20, 24, 8, 4, 6, 131, tie_embeddings=False)
QWEN2 = replace(LLAMA, model_type="qwen2", qkv_bias=True)
OUTSIDE = ["embedding.word_embeddings.weight", "decoder.final_layernorm.weight", "output_layer.weight"]
LOCAL = ["input_layernorm.weight", "pre_mlp_layernorm.weight"]
TRANSFORMER_ENGINE = ["self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight"]
BOTH = [
    "self_attention.linear_qkv.weight",
    "self_attention.linear_proj.weight",
    "mlp.linear_fc1.weight",
    "mlp.linear_fc2.weight",
]
BIAS = "self_attention.linear_qkv.bias"


def megatron_names(a: Architecture, norms: list[str]) -> list[str]:
    layer = [*norms, *BOTH, *([BIAS] if a.qkv_bias else [])]
    return [*OUTSIDE, *(f"decoder.layers.{i}.{name}" for i in range(a.num_layers) for name in layer)]


def sources_of(name: str) -> list[str]:
    """Hugging Face names of a parameter of a model on one pipeline rank, where Megatron's index is the layer."""
    return hf_names(name, int(name.split(".")[2]) if name.startswith("decoder.layers.") else -1)


def checkpoint(a: Architecture) -> dict[str, Tensor]:
    """Every Hugging Face tensor of the architecture, as transformers names and shapes it; no two numbers are alike."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**a.to_hf()))
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    numbers = torch.arange(sum(shape.numel() for shape in shapes.values()), dtype=torch.float64)
    parts = numbers.split([shape.numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def reader(tensors: dict[str, Tensor]) -> Read:
    return lambda name, dim, start, stop: tensors[name].narrow(dim, start, stop - start)


def test_query_key_value_by_hand():
    """4 heads of 2 channels in 2 groups on a hidden size of 1: rows of q are 0..7, of k 10..13, of v 20..23.

    A group is two heads of q (4 rows), one of k and one of v (2 rows each), side by side:
    0 1 2 3 | 10 11 | 20 21 for group 0, 4 5 6 7 | 12 13 | 22 23 for group 1. With tp = 2 each rank has one group.
    """
    a = Architecture(1, 1, 2, 4, 2, 2, 5, tie_embeddings=True)
    rows = {"q": torch.arange(8.0), "k": 10 + torch.arange(4.0), "v": 20 + torch.arange(4.0)}
    groups = [[0, 1, 2, 3, 10, 11, 20, 21], [4, 5, 6, 7, 12, 13, 22, 23]]
    for name, shape in (("weight", (-1, 1)), ("bias", (-1,))):
        name = f"decoder.layers.0.self_attention.linear_qkv.{name}"
        read = reader({x: values.view(shape) for x, values in rows.items()})
        whole = to_megatron(name, list("qkv"), read, Layout(a))
        assert whole.shape == ((16, 1) if len(shape) == 2 else (16,))
        assert whole.flatten().tolist() == groups[0] + groups[1]
        shards = [to_megatron(name, list("qkv"), read, Layout(a, rank, 2)) for rank in (0, 1)]
        assert [shard.flatten().tolist() for shard in shards] == groups
        for held in ([whole], shards):
            for part, values in zip(to_hf(name, held, a), rows.values(), strict=True):
                assert torch.equal(part, values.view(shape))


def test_gate_and_up_by_hand():
    """Gate rows 0..3 over up rows 10..13. With tp = 2 each rank stacks its own halves: 0 1 | 10 11 and 2 3 | 12 13.

    A cut of the stacked whole would give the first rank all of the gate and the second all of up.
    """
    a = Architecture(1, 1, 4, 1, 1, 2, 5, tie_embeddings=True)
    name = "decoder.layers.0.mlp.linear_fc1.weight"
    read = reader({"gate": torch.arange(4.0).view(4, 1), "up": 10 + torch.arange(4.0).view(4, 1)})
    assert to_megatron(name, ["gate", "up"], read, Layout(a)).flatten().tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
    shards = [to_megatron(name, ["gate", "up"], read, Layout(a, rank, 2)) for rank in (0, 1)]
    assert [shard.flatten().tolist() for shard in shards] == [[0, 1, 10, 11], [2, 3, 12, 13]]
    assert [part.flatten().tolist() for part in to_hf(name, shards, a)] == [[0, 1, 2, 3], [10, 11, 12, 13]]


def test_vocabulary_by_hand():
    """131 words over 4 ranks of 256 / 4 = 64 rows: 64, 64, 3 and no real row, then zeros; cut off on the way out."""
    embedding = 1 + torch.arange(131.0 * 20).view(131, 20)
    for name in OUTSIDE[::2]:
        read = reader({"embedding": embedding})
        shards = [to_megatron(name, ["embedding"], read, Layout(LLAMA, rank, 4)) for rank in range(4)]
        assert [shard.shape for shard in shards] == [(64, 20)] * 4
        assert [int(shard.any(dim=1).sum()) for shard in shards] == [64, 64, 3, 0]
        assert torch.equal(shards[2][:3], embedding[128:])
        (back,) = to_hf(name, shards, LLAMA)
        assert torch.equal(back, embedding)


@pytest.mark.parametrize("norms", [LOCAL, TRANSFORMER_ENGINE], ids=["local", "transformer_engine"])
@pytest.mark.parametrize(
    "a",
    [LLAMA, replace(LLAMA, model_type="mistral"), QWEN2, replace(LLAMA, vocab_size=256)],
    ids=["llama", "mistral", "qwen2", "no_padding"],
)
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_round_trip(a: Architecture, norms: list[str], tp: int):
    """Every tensor of transformers' own model goes in once and comes back bit for bit; shards have Megatron's shapes.

    Per rank: QKV (8 + 2 * 4) * 6 / tp = 96 / tp rows, FC1 2 * 24 / tp rows, the embedding 256 / tp rows, and columns
    8 * 6 / tp of the attention's output projection and 24 / tp of FC2.
    """
    shapes = {
        "word_embeddings.weight": (256 // tp, 20),
        "output_layer.weight": (256 // tp, 20),
        "linear_qkv.weight": (96 // tp, 20),
        "linear_qkv.bias": (96 // tp,),
        "linear_proj.weight": (20, 48 // tp),
        "linear_fc1.weight": (48 // tp, 20),
        "linear_fc2.weight": (20, 24 // tp),
    }
    tensors = checkpoint(a)
    back: dict[str, Tensor] = {}
    for name in megatron_names(a, norms):
        sources = sources_of(name)
        shards = [to_megatron(name, sources, reader(tensors), Layout(a, rank, tp)) for rank in range(tp)]
        end = ".".join(name.split(".")[-2:])
        assert [tuple(shard.shape) for shard in shards] == [shapes.get(end, (20,))] * tp
        parts = dict(zip(sources, to_hf(name, shards, a), strict=True))
        assert not back.keys() & parts.keys()
        back |= parts
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor), name
        assert back[name].is_contiguous(), name


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_rank_reads_no_more_than_its_shard(tp: int):
    """Streaming: the numbers that a rank reads are those of its shard, less the padding of the vocabulary."""
    tensors = checkpoint(QWEN2)
    for name in megatron_names(QWEN2, LOCAL):
        for rank in range(tp):
            numbers = []

            def read(source: str, dim: int, start: int, stop: int) -> Tensor:
                part = tensors[source].narrow(dim, start, stop - start)
                numbers.append(part.numel())  # noqa: B023
                return part

            shard = to_megatron(name, sources_of(name), read, Layout(QWEN2, rank, tp))
            padding = int((shard == 0).all(dim=1).sum()) * 20 if name in OUTSIDE[::2] else 0
            assert sum(numbers) == shard.numel() - padding


@pytest.mark.parametrize("name", megatron_names(QWEN2, LOCAL + TRANSFORMER_ENGINE))
def test_split_dim_is_the_one_along_which_shards_differ(name: str):
    """Two shards joined along `split_dim` have the size of the whole; replicated parameters are equal on both."""
    tensors = checkpoint(QWEN2)
    whole = to_megatron(name, sources_of(name), reader(tensors), Layout(QWEN2))
    shards = [to_megatron(name, sources_of(name), reader(tensors), Layout(QWEN2, rank, 2)) for rank in (0, 1)]
    dim = split_dim(name)
    if dim is None:
        assert all(torch.equal(shard, whole) for shard in shards)
    else:
        assert torch.cat(shards, dim=dim).shape == whole.shape
        assert not torch.equal(*shards)


def test_layers_are_numbered_over_the_whole_model():
    """The first layer of a pipeline rank is Megatron's layer 0 and, here, Hugging Face's layer 7."""
    assert hf_names("decoder.layers.0.mlp.linear_fc1.weight", 7) == [
        "model.layers.7.mlp.gate_proj.weight",
        "model.layers.7.mlp.up_proj.weight",
    ]
    assert hf_names("decoder.layers.0.self_attention.linear_qkv.bias", 12) == [
        f"model.layers.12.self_attn.{x}_proj.bias" for x in "qkv"
    ]
    for local, fused in zip(LOCAL, TRANSFORMER_ENGINE, strict=True):
        assert hf_names(f"decoder.layers.0.{local}", 7) == hf_names(f"decoder.layers.0.{fused}", 7)


@pytest.mark.parametrize(
    "name",
    [
        "decoder.layers.0.mlp.router.weight",
        "decoder.layers.0.mlp.experts.linear_fc1.weight",
        "decoder.layers.0.self_attention.q_layernorm.weight",
        "decoder.layers.0.self_attention.linear_proj.bias",
        "decoder.layers.0.input_layernorm.bias",
        "decoder.layers.first.input_layernorm.weight",
        "embedding.position_embeddings.weight",
        "module.output_layer.weight",
        "",
    ],
)
def test_parameters_of_other_families_are_refused(name: str):
    with pytest.raises(KeyError):
        hf_names(name, 0)


def test_import_is_light():
    """The names and cuts are pure functions: they load torch, but neither nemo nor megatron."""
    code = "import sys, bielik_nemo.engine.hf_weights; print({'nemo', 'megatron', 'lightning'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
