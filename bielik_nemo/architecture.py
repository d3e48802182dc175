"""The shape of a dense decoder of the Llama, Mistral or Qwen2 family, and its maps to Hugging Face and NeMo.

One frozen dataclass holds what decides tensor shapes and positions; counts, divisibility, pruning targets
and both foreign spellings of a configuration follow from it. `head_dim` is a field of its own: after pruning
it is not hidden_size / num_attention_heads.

A layer is Q, K, V and output projections, a gated FFN (gate, up, down) and two RMSNorms; one more norm ends
the stack. There are no biases, except Qwen2's on Q, K and V. What the family lacks (another activation, MoE,
other biases, RoPE scaling other than llama3) is refused when a configuration is read.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bielik_nemo import artifacts, hf_config
from bielik_nemo.errors import CheckpointError, ConfigError

_COUNTS = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "head_dim", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip
# Our field -> field of NeMo's GPTConfig; its vocabulary is padded and it knows no context or family.
_GPT_NAMES = {
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "ffn_hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_query_groups",
    "head_dim": "kv_channels",
    "tie_embeddings": "share_embeddings_and_output_weights",
    "rotary_base": "rotary_base",
    "norm_epsilon": "layernorm_epsilon",
    "qkv_bias": "add_qkv_bias",
}
# llama3 RoPE scaling: Hugging Face's key -> field of NeMo's Llama31Config.
_LLAMA3 = {
    "factor": "scale_factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "old_context_len",
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
            biased, families = family == "qwen2", list(hf_config.CLASSES)
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
                key = hf_config.NAMES.get(name, name)
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
        num_query_groups: int | None = None,
    ) -> Architecture:
        """The same model with fewer units on the named axes; head_dim and num_query_groups stay.

        Raises ConfigError naming every `prune.target.<axis>` that is no positive integer, is larger than the
        source, is a number of heads that the query groups cannot share evenly, or would change the query groups.
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
        if num_query_groups not in (None, self.num_query_groups):
            own = f"{self.num_query_groups}, the source's, or null: query groups are never pruned"
            problems.append(f"prune.target.num_query_groups: found {num_query_groups!r}, allowed: {own}")
        if problems:
            raise ConfigError("; ".join(problems))
        return replace(self, **targets)

    @classmethod
    def from_hf(cls, source: Any) -> Architecture:
        """Read a Hugging Face directory (its config.json), a dict, or a config object with `to_dict()`.

        A key left out means what transformers assumes for it. Raises CheckpointError naming file and keys.
        """
        where, values = hf_config.read(source)
        try:
            return cls(**values)
        except ConfigError as error:
            raise CheckpointError(f"{where}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """A config.json as a dict, without token ids and dtype, which are for the writer of the checkpoint."""
        return hf_config.write(vars(self))

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
            return cls(**hf_config.read_json(Path(path)))
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
