"""The shape of a dense decoder of the Llama, Mistral or Qwen2 family, and its maps to Hugging Face and NeMo.

One frozen dataclass holds what decides tensor shapes and positions; counts, divisibility, pruning targets
and both foreign spellings of a configuration follow from it. `head_dim` is a field of its own: after pruning
it is not hidden_size / num_attention_heads.

A layer is Q, K, V and output projections, a gated FFN (gate, up, down) and two RMSNorms; one more norm ends
the stack. There are no biases, except Qwen2's on Q, K and V. What the family lacks (another activation, MoE,
other biases, RoPE scaling other than llama3) is refused when a configuration is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bielik_nemo import artifacts
from bielik_nemo.errors import CheckpointError, ConfigError

# Our field -> (key of a Hugging Face config.json, field of NeMo's GPTConfig; None: it has none).
_NAMES = {
    "num_layers": ("num_hidden_layers", "num_layers"),
    "hidden_size": ("hidden_size", "hidden_size"),
    "ffn_hidden_size": ("intermediate_size", "ffn_hidden_size"),
    "num_attention_heads": ("num_attention_heads", "num_attention_heads"),
    "num_query_groups": ("num_key_value_heads", "num_query_groups"),
    "head_dim": ("head_dim", "kv_channels"),
    "vocab_size": ("vocab_size", None),
    "max_position_embeddings": ("max_position_embeddings", None),
    "tie_embeddings": ("tie_word_embeddings", "share_embeddings_and_output_weights"),
    "rotary_base": ("rope_theta", "rotary_base"),
    "norm_epsilon": ("rms_norm_eps", "layernorm_epsilon"),
    "model_type": ("model_type", None),
}
_COUNTS = list(_NAMES)[:8]
_GPT_NAMES = {name: key for name, (_, key) in _NAMES.items() if key} | {"qkv_bias": "add_qkv_bias"}
# llama3 RoPE scaling: Hugging Face's key -> field of NeMo's Llama31Config.
_LLAMA3 = {
    "factor": "scale_factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "old_context_len",
}
_HF_CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
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
_GPT_FIXED = {
    "normalization": "RMSNorm",
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "position_embedding_type": "rope",
    "rotary_percent": 1.0,
    "qk_layernorm": False,
    "num_moe_experts": None,
}


@dataclass(frozen=True)
class Architecture:
    """Shape of one decoder. Raises ConfigError naming every field that cannot be.

    `sliding_window` counts as Hugging Face does: the tokens that a token sees, itself included.
    `rope_scaling` is None or rope_type "llama3" with its four numbers, under Hugging Face's keys.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    tie_embeddings: bool
    rotary_base: float = 10000.0
    max_position_embeddings: int = 2048
    norm_epsilon: float = 1e-5
    qkv_bias: bool = False
    model_type: str = "llama"
    rope_scaling: dict[str, Any] | None = field(default=None, hash=False)
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        """Refuse a shape that cannot be, all problems in one message."""
        checks = [(name, _is_count(getattr(self, name)), "a positive integer") for name in _COUNTS]
        if all(good for _, good, _ in checks):
            heads, family, window = self.num_attention_heads, self.model_type, self.sliding_window
            biased, families = family == "qwen2", list(_HF_CLASSES)
            windowed = window is None or (_is_count(window) and family == "mistral")
            scaled = self.rope_scaling is None or _is_llama3(self.rope_scaling)
            checks += [
                ("num_query_groups", heads % self.num_query_groups == 0, f"a divisor of the {heads} heads"),
                ("head_dim", self.head_dim % 2 == 0, "an even number (RoPE turns pairs of channels)"),
                ("tie_embeddings", isinstance(self.tie_embeddings, bool), "true or false"),
                ("rotary_base", _is_positive(self.rotary_base), "a positive number"),
                ("norm_epsilon", _is_positive(self.norm_epsilon), "a positive number"),
                ("model_type", family in families, ", ".join(families)),
                ("qkv_bias", self.qkv_bias is biased, f"{biased} for {family}"),
                ("sliding_window", windowed, "null, or for mistral a positive integer"),
                ("rope_scaling", scaled, f"null, or rope_type llama3 with positive {', '.join(_LLAMA3)}"),
            ]
        problems = []
        for name, good, allowed in checks:
            if not good:
                key = _NAMES.get(name, (name,))[0]
                label = name if key == name else f"{name} ({key} in config.json)"
                problems.append(f"{label}: found {getattr(self, name)!r}, allowed: {allowed}")
        if problems:
            raise ConfigError("architecture: " + "; ".join(problems))

    def num_parameters(self, embeddings: str = "all") -> int:
        """Exact number of parameters.

        "all" counts what is stored: untied, both the input embedding and the output matrix. "once" counts one
        of the two, as the Bielik-Minitron paper does. Tied, the two counts are equal.
        """
        if embeddings not in ("all", "once"):
            raise ValueError(f"embeddings: found {embeddings!r}, allowed: 'all', 'once'")
        query = self.num_attention_heads * self.head_dim
        key_value = 2 * self.num_query_groups * self.head_dim
        attention = self.hidden_size * (2 * query + key_value) + self.qkv_bias * (query + key_value)
        layer = attention + 3 * self.hidden_size * self.ffn_hidden_size + 2 * self.hidden_size
        matrices = 1 if self.tie_embeddings or embeddings == "once" else 2
        return self.num_layers * layer + self.hidden_size + matrices * self.vocab_size * self.hidden_size

    def kv_cache_bytes_per_token(self, bytes_per_element: int = 2) -> int:
        """Bytes of keys and values that all layers together keep per token (2 bytes per element: bf16)."""
        return 2 * self.num_layers * self.num_query_groups * self.head_dim * bytes_per_element

    def padded_vocab_size(self, tp: int = 1, divisor: int = 128) -> int:
        """Rows of Megatron's embedding: the smallest multiple of `divisor` and `tp` that holds vocab_size.

        The same for every tp that divides `divisor`, unlike Megatron's own rule (a multiple of divisor * tp).
        """
        multiple = math.lcm(divisor, tp)
        return -(-self.vocab_size // multiple) * multiple

    def check_parallel(self, tp: int = 1, pp: int = 1) -> list[str]:
        """Every reason why Megatron-Core 0.15 cannot split this shape over tp x pp ranks; empty if it can.

        tp must divide heads, query groups (KV heads are never replicated) and FFN channels, but not
        hidden_size, which even sequence parallelism does not split. pp must divide the layers.
        """
        problems = []
        for key, ranks, names in (
            ("parallel.tp", tp, ("num_attention_heads", "num_query_groups", "ffn_hidden_size")),
            ("parallel.pp", pp, ("num_layers",)),
        ):
            common = math.gcd(*(getattr(self, name) for name in names))
            allowed = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
            if ranks < 1:
                problems.append(f"{key}={ranks}: not a positive number; allowed: {allowed}")
                continue
            bad = [f"{name}={getattr(self, name)}" for name in names if getattr(self, name) % ranks]
            problems += [f"{key}={ranks}: does not divide {size}; allowed: {allowed}" for size in bad]
        return problems

    def pruned_to(
        self,
        num_layers: int | None = None,
        hidden_size: int | None = None,
        ffn_hidden_size: int | None = None,
        num_attention_heads: int | None = None,
    ) -> Architecture:
        """The same model with fewer units on the named axes; head_dim and num_query_groups stay.

        Raises ConfigError naming every `prune.target.<axis>` that is no positive integer, is larger than the
        source, or is a number of heads that the query groups cannot share evenly.
        """
        axes = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")
        sizes = (num_layers, hidden_size, ffn_hidden_size, num_attention_heads)
        targets = {name: size for name, size in zip(axes, sizes, strict=True) if size is not None}
        problems = []
        for name, value in targets.items():
            source = getattr(self, name)
            unit = self.num_query_groups if name == "num_attention_heads" else 1
            if not _is_count(value) or value > source or value % unit:
                steps = f" in steps of num_query_groups={unit}" if unit > 1 else ""
                problems.append(f"prune.target.{name}: found {value!r}, allowed: {unit} to {source}{steps}")
        if problems:
            raise ConfigError("; ".join(problems))
        return replace(self, **targets)

    @classmethod
    def from_hf(cls, source: Any) -> Architecture:
        """Read a Hugging Face directory (its config.json), a dict, or a config object with `to_dict()`.

        A key left out means what transformers assumes for it. Raises CheckpointError naming file and keys.
        """
        if isinstance(source, str | Path):
            where = Path(source) / "config.json"
            config = _read_json(where)
        else:
            where = "Hugging Face config"
            config = source.to_dict() if hasattr(source, "to_dict") else source
        family = config.get("model_type")
        if family not in list(_HF_CLASSES):
            raise CheckpointError(f"{where}: model_type: found {family!r}, allowed: {', '.join(_HF_CLASSES)}")
        rope, problems = _read_rope(config)
        config = {**_HF_COMMON, **_HF_DEFAULTS[family], **config}
        for key, allowed in {**_HF_FIXED, "architectures": [_HF_CLASSES[family]]}.items():
            if config.get(key) not in (None, allowed):
                problems.append(f"{key}: found {config[key]!r}, allowed: {allowed!r}")
        if problems:
            raise CheckpointError(f"{where}: " + "; ".join(problems))
        values = {name: config.get(key) for name, (key, _) in _NAMES.items()} | rope
        heads, hidden_size = values["num_attention_heads"], values["hidden_size"]
        if values["num_query_groups"] is None:
            values["num_query_groups"] = heads
        if values["head_dim"] is None and _is_count(heads) and _is_count(hidden_size):
            values["head_dim"] = hidden_size // heads
        window = config.get("sliding_window") if family == "mistral" else None
        try:
            return cls(**values, qkv_bias=family == "qwen2", sliding_window=window)
        except ConfigError as error:
            raise CheckpointError(f"{where}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """A config.json as a dict; RoPE in both spellings, so that transformers 4 and 5 read the same model.

        Token ids and dtype are for the writer of the checkpoint. transformers 5 refuses a `llama` whose
        hidden_size is not a multiple of num_attention_heads, whatever its head_dim; 4 has no such rule.
        """
        scaling = self.rope_scaling or {}
        own = {
            "llama": {"attention_bias": False, "mlp_bias": False},
            "mistral": {"sliding_window": self.sliding_window},
            "qwen2": {"use_sliding_window": False},
        }
        return {
            "architectures": [_HF_CLASSES[self.model_type]],
            **{key: getattr(self, name) for name, (key, _) in _NAMES.items()},
            "hidden_act": "silu",
            "rope_scaling": dict(scaling) or None,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rotary_base, **scaling},
            **own[self.model_type],
        }

    def gpt_config_kwargs(self, seq_length: int | None = None, tp: int = 1) -> dict[str, Any]:
        """Arguments of NeMo's `GPTConfig` (or `Llama31Config`, with rope_scaling) but `activation_func=silu`.

        `vocab_size` is the padded one. Megatron's window counts the tokens before the own one: Hugging Face's
        W is (W - 1, 0) here (NeMo's Mistral importer passes W: one token too many). Dropout is 0, where
        Megatron's default is 0.1.
        """
        scaling = self.rope_scaling or {}
        return {
            **_GPT_FIXED,
            **{key: getattr(self, name) for name, key in _GPT_NAMES.items()},
            **{key: scaling[name] for name, key in _LLAMA3.items() if name in scaling},
            "vocab_size": self.padded_vocab_size(tp),
            "seq_length": seq_length or self.max_position_embeddings,
            "window_size": (self.sliding_window - 1, 0) if self.sliding_window else None,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        }

    @classmethod
    def from_gpt_config(
        cls, config: Any, *, vocab_size: int, max_position_embeddings: int, model_type: str = "llama"
    ) -> Architecture:
        """Read a NeMo `GPTConfig` back; the keywords are what it lacks (its vocabulary is the padded one).

        Raises CheckpointError naming every attribute that is outside the family.
        """
        problems = [
            f"{key}: found {getattr(config, key)!r}, allowed: {allowed!r}"
            for key, allowed in _GPT_FIXED.items()
            if getattr(config, key) != allowed
        ]
        if config.activation_func.__name__ != "silu":
            problems.append(f"activation_func: found {config.activation_func!r}, allowed: silu")
        if problems:
            raise CheckpointError("GPTConfig: " + "; ".join(problems))
        scaling = None
        if hasattr(config, "scale_factor"):
            scaling = {"rope_type": "llama3", **{name: getattr(config, key) for name, key in _LLAMA3.items()}}
        return cls(
            **{name: getattr(config, key) for name, key in _GPT_NAMES.items()},
            vocab_size=vocab_size,
            max_position_embeddings=max_position_embeddings,
            model_type=model_type,
            rope_scaling=scaling,
            sliding_window=config.window_size[0] + 1 if config.window_size else None,
        )

    def to_json(self, path: str | Path) -> None:
        """Write the fields as JSON, atomically."""
        artifacts.write_json(Path(path), asdict(self))

    @classmethod
    def from_json(cls, path: str | Path) -> Architecture:
        """Read what `to_json` wrote; CheckpointError names the file and what is wrong with it."""
        try:
            return cls(**_read_json(Path(path)))
        except (TypeError, ConfigError) as error:  # TypeError: a field is missing, or is none of ours
            raise CheckpointError(f"{path}: {error}") from None


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _is_llama3(scaling: Any) -> bool:
    return (
        isinstance(scaling, dict)
        and scaling.keys() == {"rope_type", *_LLAMA3}
        and scaling["rope_type"] == "llama3"
        and all(_is_positive(scaling[key]) for key in _LLAMA3)
    )


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
    strange = rope.keys() - {"rope_theta", "rope_type", "partial_rotary_factor", *_LLAMA3}
    if kind not in ("default", "llama3"):
        problems.append(f"rope_type: found {kind!r}, allowed: 'default', 'llama3'")
    elif strange:  # such as one table per kind of layer
        problems.append(f"rope_parameters: found {', '.join(sorted(strange))}, allowed: {', '.join(_LLAMA3)}")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append(f"partial_rotary_factor: found {rope['partial_rotary_factor']!r}, allowed: 1.0")
    scaling = {key: rope.get(key) for key in ("rope_type", *_LLAMA3)} if kind == "llama3" else None
    return {"rotary_base": rope.get("rope_theta", 10000.0), "rope_scaling": scaling}, problems


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # neither UTF-8 nor JSON
        raise CheckpointError(f"{path}: is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: found {type(value).__name__}, allowed: a JSON object")
    return value
