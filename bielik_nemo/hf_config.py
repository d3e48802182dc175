"""Hugging Face's config.json of a dense Llama, Mistral or Qwen2 decoder, as the field values of an `Architecture`.

RoPE has two spellings: transformers 4 reads `rope_theta` and `rope_scaling`, 5 reads `rope_parameters`; both are read
and both are written. What the family does not have is refused, with every key that says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bielik_nemo.errors import CheckpointError

# Field of Architecture -> key of config.json.
NAMES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings",
    "rotary_base": "rope_theta",
    "norm_epsilon": "rms_norm_eps",
    "model_type": "model_type",
}
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
"""The four numbers of llama3 RoPE scaling."""
CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
# What transformers assumes for a key that config.json leaves out, for all families and for each.
_HF_COMMON = {"tie_word_embeddings": False, "rms_norm_eps": 1e-6}
_HF_DEFAULTS = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32},
}
# Keys that may say this or nothing. Llama's attention_bias would also put one on the output projection.
_HF_FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
}


def read(source: Any) -> tuple[Any, dict[str, Any]]:
    """Where the configuration came from, and the field values that it gives.

    Raises:
        CheckpointError: no readable config.json, another family, or keys outside what is supported; all are named.
    """
    if isinstance(source, str | Path):
        where = Path(source) / "config.json"
        config = read_json(where)
    else:
        where = "Hugging Face config"
        config = source.to_dict() if hasattr(source, "to_dict") else source
    family = config.get("model_type")
    if family not in list(CLASSES):
        raise CheckpointError(f"{where}: model_type: found {family!r}, allowed: {', '.join(CLASSES)}")
    rope, problems = _read_rope(config)
    config = {**_HF_COMMON, **_HF_DEFAULTS[family], **config}
    for key, allowed in {**_HF_FIXED, "architectures": [CLASSES[family]]}.items():
        if config.get(key) not in (None, allowed):
            problems.append(f"{key}: found {config[key]!r}, allowed: {allowed!r}")
    if problems:
        raise CheckpointError(f"{where}: " + "; ".join(problems))
    values = {name: config.get(key) for name, key in NAMES.items()} | rope
    heads, hidden_size = values["num_attention_heads"], values["hidden_size"]
    if values["num_query_groups"] is None:
        values["num_query_groups"] = heads
    if values["head_dim"] is None and type(heads) is int and heads > 0 and type(hidden_size) is int:
        values["head_dim"] = hidden_size // heads
    window = config.get("sliding_window") if family == "mistral" else None
    return where, values | {"qkv_bias": family == "qwen2", "sliding_window": window}


def write(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json from the fields of an `Architecture`.

    transformers 5 refuses a `llama` whose hidden_size is not a multiple of num_attention_heads, whatever its head_dim;
    4 has no such rule.
    """
    scaling = fields["rope_scaling"] or {}
    own = {
        "llama": {"attention_bias": False, "mlp_bias": False},
        "mistral": {"sliding_window": fields["sliding_window"]},
        "qwen2": {"use_sliding_window": False},
    }
    return {
        "architectures": [CLASSES[fields["model_type"]]],
        **{key: fields[name] for name, key in NAMES.items()},
        "hidden_act": "silu",
        "rope_scaling": dict(scaling) or None,
        "rope_parameters": {"rope_type": "default", "rope_theta": fields["rotary_base"], **scaling},
        **own[fields["model_type"]],
    }


def _read_rope(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Fields rotary_base and rope_scaling of a Hugging Face config, and what is wrong with it.

    transformers 4 reads `rope_theta` and `rope_scaling`, 5 reads `rope_parameters`. Where both stand they
    must agree, or the two would load different models.
    """
    top_level = {key: config.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    rope: dict[str, Any] = {}
    problems = []
    for table in (top_level, config.get("rope_scaling"), config.get("rope_parameters")):
        if not isinstance(table or {}, Mapping):
            problems.append(f"rope_scaling or rope_parameters: found {table!r}, allowed: a table")
            continue
        for key, value in (table or {}).items():
            key = "rope_type" if key == "type" else key
            if value is not None and rope.setdefault(key, value) != value:
                problems.append(f"{key}: found {rope[key]!r} and {value!r}, allowed: one value everywhere")
    kind = rope.setdefault("rope_type", "default")
    strange = rope.keys() - {"rope_theta", "rope_type", "partial_rotary_factor", *LLAMA3}
    if kind not in ("default", "llama3"):
        problems.append(f"rope_type: found {kind!r}, allowed: 'default', 'llama3'")
    elif strange:  # such as one table per kind of layer
        problems.append(f"rope_parameters: found {', '.join(sorted(strange))}, allowed: {', '.join(LLAMA3)}")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append(f"partial_rotary_factor: found {rope['partial_rotary_factor']!r}, allowed: 1.0")
    scaling = {key: rope.get(key) for key in ("rope_type", *LLAMA3)} if kind == "llama3" else None
    return {"rotary_base": rope.get("rope_theta", 10000.0), "rope_scaling": scaling}, problems


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint; CheckpointError names the file and what is wrong."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # neither UTF-8 nor JSON
        raise CheckpointError(f"{path}: is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: found {type(value).__name__}, allowed: a JSON object")
    return value
