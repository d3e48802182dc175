"""Counts, divisibility, pruning targets and the maps to Hugging Face and NeMo.

The parameter count by hand, for the Bielik teacher: attention 4096 * (2 * 32 + 2 * 8) * 128 = 41,943,040, FFN
3 * 4096 * 14336 = 176,160,768, norms 2 * 4096 = 8,192: a layer is 218,112,000. Fifty layers, the final norm
of 4,096 and two matrices of 32128 * 4096 = 131,596,288 make 11,168,796,672.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from bielik_nemo.architecture import Architecture
from bielik_nemo.errors import CheckpointError, ConfigError
from bielik_nemo.hf_config import _HF_COMMON, _HF_DEFAULTS

TEACHER = Architecture(50, 4096, 14336, 32, 8, 128, 32128, False, rotary_base=1e6, max_position_embeddings=32768)
SMOLLM2 = Architecture(30, 576, 1536, 9, 3, 64, 49152, True, rotary_base=1e5, max_position_embeddings=8192)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# Small enough to build, awkward on purpose: no two sizes alike, head_dim != hidden / heads, odd vocabularies.
SHAPES = {
    "llama": Architecture(2, 48, 80, 6, 2, 16, 101, False, rotary_base=5e5, norm_epsilon=1e-6),
    "llama tied": Architecture(3, 40, 56, 4, 4, 12, 67, True),
    "llama scaled": Architecture(2, 48, 80, 6, 2, 16, 101, True, rotary_base=5e5, rope_scaling=LLAMA3),
    "mistral": Architecture(2, 50, 72, 6, 3, 16, 103, False, model_type="mistral", rotary_base=1e6),
    "mistral window": Architecture(1, 64, 72, 8, 1, 8, 64, True, model_type="mistral", sliding_window=24),
    "qwen2": Architecture(2, 48, 80, 6, 2, 16, 101, False, model_type="qwen2", qkv_bias=True),
    "qwen2 tied": Architecture(1, 60, 44, 4, 2, 20, 90, True, model_type="qwen2", qkv_bias=True),
}
SMALL = SHAPES["llama"]
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def test_published_parameter_counts():
    """Student layer: 41,943,040 + 3 * 4096 * 11264 + 8,192 = 180,363,264; forty of them + 263,196,672."""
    student = TEACHER.pruned_to(num_layers=40, ffn_hidden_size=11264)
    assert TEACHER.num_parameters() == 11_168_796_672
    assert student.num_parameters() == 7_477_727_232
    assert TEACHER.num_parameters("once") == 11_168_796_672 - 131_596_288
    assert SMOLLM2.num_parameters() == SMOLLM2.num_parameters("once") == 134_515_008
    with pytest.raises(ValueError, match=r"'none'.*allowed: 'all', 'once'"):
        TEACHER.num_parameters("none")


@pytest.mark.parametrize(
    ("hidden_size", "ffn_hidden_size", "num_layers", "billions"),
    [
        (4096, 14336, 50, 11.04),
        (3072, 14336, 50, 8.28),
        (4096, 9216, 50, 7.90),
        (4096, 14336, 36, 7.99),
        (4096, 12288, 40, 7.85),
        (4096, 10240, 50, 8.52),
        (4096, 11264, 44, 8.07),
        (3648, 12800, 44, 7.92),
        (4096, 14336, 32, 7.11),
        (4096, 8192, 50, 7.26),
        (4096, 11264, 40, 7.35),
    ],
    ids=["original", *(f"{number:03}" for number in range(1, 11))],
)
def test_candidates_of_the_paper(hidden_size, ffn_hidden_size, num_layers, billions):
    """Bielik-Minitron-7B (arXiv 2603.11881), Table 2: one embedding matrix counted, two decimals printed."""
    candidate = TEACHER.pruned_to(num_layers, hidden_size, ffn_hidden_size)
    assert candidate.head_dim == 128
    assert abs(candidate.num_parameters("once") / 1e9 - billions) <= 0.01


def test_kv_cache():
    """2 (K, V) * 50 layers * 8 groups * 128 channels * 2 bytes = 204,800 bytes."""
    assert TEACHER.kv_cache_bytes_per_token() == 204_800
    assert TEACHER.kv_cache_bytes_per_token(bytes_per_element=4) == 409_600
    assert TEACHER.pruned_to(num_layers=40).kv_cache_bytes_per_token() == 163_840


def test_padded_vocabulary():
    """32128 = 251 * 128; 101 -> 128; lcm(128, 3) = 384; lcm(128, 256) = 256, 32128 -> 32256 = 126 * 256."""
    assert {TEACHER.padded_vocab_size(tp) for tp in (1, 2, 4, 8, 128)} == {32128}
    assert {SMALL.padded_vocab_size(tp) for tp in (1, 2, 4, 8)} == {128}
    assert SMALL.padded_vocab_size(tp=3) == 384
    assert TEACHER.padded_vocab_size(tp=256) == 32256
    assert SMALL.padded_vocab_size(divisor=1) == 101


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, r"num_layers \(num_hidden_layers in config.json\): found 0, allowed: a positive"),
        ({"hidden_size": 48.0}, "hidden_size: found 48.0, allowed: a positive integer"),
        ({"vocab_size": True}, "vocab_size: found True"),
        ({"num_query_groups": 4}, "found 4, allowed: a divisor of the 6 heads"),
        ({"head_dim": 15}, "head_dim: found 15, allowed: an even number"),
        ({"tie_embeddings": 1}, "tie_embeddings .*: found 1, allowed: true or false"),
        ({"rotary_base": 0.0}, "rotary_base .*: found 0.0, allowed: a positive number"),
        ({"norm_epsilon": float("nan")}, "norm_epsilon .*: found nan"),
        ({"model_type": "gpt2"}, "model_type: found 'gpt2', allowed: llama, mistral, qwen2"),
        ({"qkv_bias": True}, "qkv_bias: found True, allowed: False for llama"),
        ({"model_type": "qwen2"}, "qkv_bias: found False, allowed: True for qwen2"),
        ({"sliding_window": 8}, "sliding_window: found 8, allowed: null, or for mistral"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window: found 0"),
        ({"rope_scaling": LLAMA3 | {"rope_type": "yarn"}}, "rope_scaling: found .*yarn"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling: found .*yarn"),
        (
            {"rope_scaling": LLAMA3 | {"factor": None}},
            "rope_scaling: found .*allowed: null, or rope_type llama3",
        ),
    ],
)
def test_impossible_shapes(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **changes)


def test_all_problems_in_one_message():
    with pytest.raises(ConfigError, match=r"num_layers.*found -1.*head_dim: found None"):
        replace(SMALL, num_layers=-1, head_dim=None)
    with pytest.raises(ConfigError, match=r"num_query_groups.*found 4.*head_dim: found 15"):
        replace(SMALL, num_query_groups=4, head_dim=15)


def test_parallel():
    """9 heads, 3 groups, FFN 1536: tp must divide gcd(9, 3, 1536) = 3. 30 layers: pp any divisor of 30."""
    assert TEACHER.check_parallel(tp=8, pp=10) == []
    assert SMOLLM2.check_parallel(tp=3, pp=6) == []
    assert SMOLLM2.check_parallel(tp=2, pp=4) == [
        "parallel.tp=2: does not divide num_attention_heads=9; allowed: 1, 3",
        "parallel.tp=2: does not divide num_query_groups=3; allowed: 1, 3",
        "parallel.pp=4: does not divide num_layers=30; allowed: 1, 2, 3, 5, 6, 10, 15, 30",
    ]
    assert TEACHER.check_parallel(tp=16) == ["parallel.tp=16: does not divide num_query_groups=8; allowed: 1, 2, 4, 8"]
    assert replace(TEACHER, ffn_hidden_size=11262).check_parallel(tp=4) == [
        "parallel.tp=4: does not divide ffn_hidden_size=11262; allowed: 1, 2"
    ]
    assert SMALL.check_parallel(tp=0) == ["parallel.tp=0: not a positive number; allowed: 1, 2"]


def test_pruning_keeps_what_it_does_not_name():
    pruned = SMALL.pruned_to(hidden_size=36, num_attention_heads=4)
    assert pruned == replace(SMALL, hidden_size=36, num_attention_heads=4)
    assert (pruned.head_dim, pruned.num_query_groups) == (16, 2)
    assert SMALL.pruned_to() == SMALL


def test_impossible_pruning_names_every_target():
    with pytest.raises(ConfigError) as error:
        SMALL.pruned_to(num_layers=3, hidden_size=0, ffn_hidden_size="64", num_attention_heads=3)
    assert str(error.value).split("; ") == [
        "prune.target.num_layers: found 3, allowed: 1 to 2",
        "prune.target.hidden_size: found 0, allowed: 1 to 48",
        "prune.target.ffn_hidden_size: found '64', allowed: 1 to 80",
        "prune.target.num_attention_heads: found 3, allowed: 2 to 6 in steps of num_query_groups=2",
    ]


def hf_model(config: dict):
    """A model of plain transformers on the meta device: shapes without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    loaded = AutoConfig.for_model(**config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(loaded)


@every_shape
def test_transformers_builds_the_same_model(shape):
    model = hf_model(shape.to_hf())
    assert type(model).__name__ == shape.to_hf()["architectures"][0]
    assert sum(parameter.numel() for parameter in model.parameters()) == shape.num_parameters()
    assert model.config.tie_word_embeddings is shape.tie_embeddings
    attention = model.model.layers[-1].self_attn
    width = shape.num_attention_heads * shape.head_dim
    assert tuple(attention.q_proj.weight.shape) == (width, shape.hidden_size)
    assert tuple(attention.k_proj.weight.shape) == (
        shape.num_query_groups * shape.head_dim,
        shape.hidden_size,
    )
    assert (attention.v_proj.bias is not None) is shape.qkv_bias
    assert attention.o_proj.bias is None
    assert model.model.norm.variance_epsilon == shape.norm_epsilon
    assert getattr(model.config, "sliding_window", None) == shape.sliding_window


@every_shape
def test_transformers_turns_with_the_same_frequencies(shape):
    """The second channel pair turns by rotary_base ** (-2 / head_dim) per token; llama3 slows the last."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = AutoConfig.for_model(**shape.to_hf())
    kind = shape.to_hf()["rope_parameters"]["rope_type"]
    frequencies, _ = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    assert len(frequencies) == shape.head_dim // 2
    assert frequencies[1].item() == pytest.approx(shape.rotary_base ** (-2 / shape.head_dim), rel=1e-5)
    if shape.rope_scaling:  # the slowest channels have wavelengths beyond 8192 tokens: slowed by the whole factor
        slowest = shape.rotary_base ** (2 / shape.head_dim - 1)
        assert frequencies[-1].item() == pytest.approx(slowest / shape.rope_scaling["factor"], rel=1e-5)


@every_shape
def test_round_trip_through_hugging_face(shape, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(shape.to_hf()))
    assert Architecture.from_hf(tmp_path) == Architecture.from_hf(str(tmp_path)) == shape
    assert Architecture.from_hf(shape.to_hf()) == shape
    assert Architecture.from_hf(hf_model(shape.to_hf()).config) == shape


@every_shape
def test_each_spelling_of_rope_alone(shape):
    """transformers 4 writes rope_theta and rope_scaling, 5 writes rope_parameters."""
    config = shape.to_hf()
    five = {key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling")}
    four = {key: value for key, value in config.items() if key != "rope_parameters"}
    assert Architecture.from_hf(four) == Architecture.from_hf(five) == shape


def test_what_transformers_assumes():
    from transformers import LlamaConfig, MistralConfig, Qwen2Config

    families = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
    for family, defaults in _HF_DEFAULTS.items():
        for key, value in (_HF_COMMON | defaults).items():
            assert getattr(families[family](), key) == value
    needed = dict(num_hidden_layers=2, hidden_size=64, intermediate_size=96, num_attention_heads=32, vocab_size=99)
    for family in families:
        config = needed | {"model_type": family, "max_position_embeddings": 128}
        read = Architecture.from_hf(config)
        assert read.num_parameters() == sum(p.numel() for p in hf_model(config).parameters())
        assert read.head_dim == 2
        assert read.num_query_groups == (8 if family == "mistral" else 32)
        assert read.sliding_window == (4096 if family == "mistral" else None)
        assert (read.rotary_base, read.norm_epsilon, read.tie_embeddings) == (10000.0, 1e-6, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma"}, "model_type: found 'gemma', allowed: llama, mistral, qwen2"),
        ({"model_type": None}, "model_type: found None"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            r"architectures: .*allowed: \['LlamaForCausalLM'\]",
        ),
        ({"hidden_act": "gelu"}, "hidden_act: found 'gelu', allowed: 'silu'"),
        ({"attention_bias": True}, "attention_bias: found True, allowed: False"),
        ({"mlp_bias": True}, "mlp_bias: found True, allowed: False"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: found .*allowed: None"),
        (
            {"model_type": "qwen2", "architectures": None, "use_sliding_window": True},
            "use_sliding_window: found True",
        ),
        ({"num_hidden_layers": None}, "num_hidden_layers in config.json.: found None"),
        ({"intermediate_size": "80"}, "intermediate_size in config.json.: found '80'"),
        ({"num_key_value_heads": 4}, "num_key_value_heads in config.json.: found 4"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type: found .*'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5}}, "rope_type: found 'yarn', allowed: "),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 5e5}}},
            "rope_parameters: found full_attention",
        ),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_theta: found 500000.0 and 10000.0"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            "rope_scaling: .*'low_freq_factor': None",
        ),
        ({"rope_scaling": "linear"}, "rope_scaling or rope_parameters: found 'linear'"),
        ({"rope_scaling": LLAMA3}, "rope_type: found 'llama3' and 'default'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: found 0.5, allowed: 1.0"),
    ],
)
def test_refused_configurations(changes, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL.to_hf() | changes))
    with pytest.raises(CheckpointError, match=message) as error:
        Architecture.from_hf(tmp_path)
    assert str(error.value).startswith(f"{path}: ")


def test_refusal_lists_all_keys():
    with pytest.raises(CheckpointError, match=r"rope_theta.*hidden_act.*mlp_bias"):
        Architecture.from_hf(SMALL.to_hf() | {"rope_theta": 1.0, "hidden_act": "gelu", "mlp_bias": True})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json: cannot be read: No such file"),
        (b'{"model_type": ', "config.json: is not valid JSON: .*line 1"),
        (b"\xff\xfe", "config.json: is not valid JSON"),
        (b"[]", "config.json: found list, allowed: a JSON object"),
        (b'{"model_type": "llama"}', "config.json: architecture: num_layers"),
    ],
)
def test_unreadable_directories(content, message, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Architecture.from_hf(tmp_path)


def silu():
    """Stands for torch.nn.functional.silu, which is known by its name."""


def gpt_config(shape: Architecture, **changes) -> SimpleNamespace:
    return SimpleNamespace(**shape.gpt_config_kwargs() | {"activation_func": silu} | changes)


@every_shape
def test_round_trip_through_nemo(shape):
    config = gpt_config(shape)
    held_elsewhere = {key: getattr(shape, key) for key in ("vocab_size", "max_position_embeddings", "model_type")}
    assert Architecture.from_gpt_config(config, **held_elsewhere) == shape


def test_nemo_arguments():
    """Window 24 with the own token is 23 before it; 101 tokens are padded to 128 rows, at tp=3 to 384."""
    config = gpt_config(SMALL)
    assert (config.kv_channels, config.ffn_hidden_size, config.vocab_size) == (16, 80, 128)
    assert (config.window_size, config.seq_length, config.rotary_base) == (None, 2048, 5e5)
    assert (config.attention_dropout, config.hidden_dropout) == (0.0, 0.0)
    assert not hasattr(config, "scale_factor")
    assert SMALL.gpt_config_kwargs(seq_length=64, tp=3)["seq_length"] == 64
    assert SMALL.gpt_config_kwargs(tp=3)["vocab_size"] == 384
    assert gpt_config(SHAPES["mistral window"]).window_size == (23, 0)
    assert gpt_config(SHAPES["qwen2"]).add_qkv_bias is True
    assert gpt_config(SHAPES["llama scaled"]).scale_factor == 32.0
    assert gpt_config(SHAPES["llama scaled"]).old_context_len == 8192


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"normalization": "LayerNorm", "num_moe_experts": 8},
            "normalization: found 'LayerNorm'.*num_moe_experts",
        ),
        ({"activation_func": print}, "activation_func: found .*print.*allowed: silu"),
    ],
)
def test_nemo_configurations_outside_the_family(changes, message):
    with pytest.raises(CheckpointError, match=message):
        Architecture.from_gpt_config(gpt_config(SMALL, **changes), vocab_size=101, max_position_embeddings=2048)


@every_shape
def test_json(shape, tmp_path):
    path = tmp_path / "architecture.json"
    shape.to_json(path)
    assert Architecture.from_json(path) == shape
    assert os.listdir(tmp_path) == ["architecture.json"]


def test_json_of_another_kind(tmp_path):
    path = tmp_path / "architecture.json"
    for change, message in (
        ({"experts": 8}, "unexpected keyword argument 'experts'"),
        ({"num_layers": 0}, "num_layers .*found 0"),
    ):
        path.write_text(json.dumps(asdict(SMALL) | change))
        with pytest.raises(CheckpointError, match=f"architecture.json: .*{message}"):
            Architecture.from_json(path)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "architecture.json"
    SMALL.to_json(path)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        TEACHER.to_json(path)
    assert Architecture.from_json(path) == SMALL
    assert os.listdir(tmp_path) == ["architecture.json"]


def test_import_is_light():
    heavy = "{'torch', 'transformers', 'nemo', 'megatron'}"
    code = f"import sys, bielik_nemo.architecture; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hashable():
    assert len({SMALL, replace(SMALL), SHAPES["llama scaled"]}) == 2
