"""How a model was made, stage by stage, as its manifests tell it: what a model card says of the way to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bielik_nemo.architecture import Architecture
from bielik_nemo.report import words

Manifest = Mapping[str, Any]
"""The content of a stage's manifest.json; of its `config` the keys are dotted and may hold sections."""

_LOSSES = {"bielik": "DPO-Positive", "smaug": "DPO-Positive in Smaug's form", "plain": "plain DPO"}
_SIZES = {
    "num_layers": "layers",
    "hidden_size": "hidden size",
    "ffn_hidden_size": "FFN size",
    "num_attention_heads": "heads",
    "num_query_groups": "query groups",
    "vocab_size": "vocabulary",
}


def steps(manifests: Mapping[str, Manifest], source: Architecture, final: Architecture) -> list[tuple[str, str]]:
    """(what was done, how) of every stage that changed the model.

    Args:
        manifests: of the pipeline's stages by name, in their order.
        source: shape of the model that all began with.
        final: shape of the one that came out.
    """
    found = []
    for stage, manifest in manifests.items():
        if stage in _STORIES:
            title, tell = _STORIES[stage]
            settings = flat(manifest.get("config") or {})
            found.append((title, tell(stage, settings, manifest.get("metrics") or {}) or ""))
        elif stage == "prune":
            found.append(("Pruning", _prune(flat(manifest.get("config") or {}), source, final)))
    return found


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their whole dotted keys."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def sizes(before: Architecture, after: Architecture) -> dict[str, tuple[int, int]]:
    """Both values of each size, by what it is called."""
    return {name: (getattr(before, field), getattr(after, field)) for field, name in _SIZES.items()}


def _prune(settings: Mapping[str, Any], source: Architecture, final: Architecture) -> str:
    cut = [f"{name} {a:,} to {b:,}" for name, (a, b) in sizes(source, final).items() if a != b and name != "vocabulary"]
    told = [
        f"structured, from {words.count(source.num_parameters())} to {words.count(final.num_parameters())} parameters"
    ]
    told += [", ".join(cut)] if cut else []
    kinds = ("attention", "ffn", "blocks", "rotation")
    refits = [kind for kind in kinds if settings.get(f"prune.compensation.{kind}")]
    return "; ".join(told + ([f"made up for by least squares ({', '.join(refits)})"] if refits else []))


def _pace(stage: str, settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Steps, batch, rates: the stage's own, or those of the common sections."""

    def own(name: str, common: str) -> Any:
        found = settings.get(f"{stage}.{name}")
        return settings.get(f"{common}.{name}") if found is None else found

    count = metrics.get("step") or own("max_steps", "trainer")
    batch, length = own("global_batch_size", "data"), own("seq_length", "data")
    rate, schedule = own("lr", "optim"), own("schedule", "optim")
    told = [f"{count:,} steps"] if count else []
    unit = {"dpo": "pairs", "grpo": "prompts"}.get(stage, "sequences")
    told += [f"{batch:,} {unit} of up to {length:,} tokens in a batch"] if batch and length else []
    told += [f"learning rate {rate:g}" + (f" ({schedule})" if schedule else "")] if rate else []
    return ", ".join(told)


def _swap(stage: str, settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    told = [f"{metrics[name]:,} {name}" for name in ("copied", "mixed", "drawn") if name in metrics]
    return f"embeddings by FOCUS (arXiv 2305.14481){': ' if told else ''}{', '.join(told)}"


def _score(stage: str, settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    layers = str(settings.get("prune.importance.layers", "")).replace("_", " ")
    tokens = metrics.get("calibration_tokens")
    told = [f"layers by {layers}"] if layers else []
    return ", ".join(told + ([f"measured on {tokens:,} tokens of calibration text"] if tokens else []))


def _distill(stage: str, settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    weights = {
        name.rpartition(".")[2]: value for name, value in settings.items() if name.startswith("distill.weights.")
    }
    parts = [f"{value:g} {name.replace('_', ' ')}" for name, value in weights.items() if value]
    temperature = settings.get("distill.temperature")
    loss = [f"loss {' + '.join(parts)}" + (f" at temperature {temperature:g}" if temperature else "")] if parts else []
    return ", ".join(["from the source's predictions", *loss, _pace(stage, settings, metrics)])


def _sft(stage: str, settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    rank, taught = settings.get("sft.lora.rank"), settings.get("sft.forward_kl")
    told = ["on the answers of conversations"] + ([f"LoRA of rank {rank}"] if rank else [])
    told += [f"{taught:g} forward KL from the source"] if taught else []
    return ", ".join([*told, _pace(stage, settings, metrics)])


def _dpo(stage: str, settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    told = [_LOSSES.get(settings.get("dpo.loss", ""), "")]
    told += [f"{name} {settings[f'dpo.{name}']:g}" for name in ("beta", "penalty") if settings.get(f"dpo.{name}")]
    return ", ".join(filter(None, [*told, _pace(stage, settings, metrics)]))


def _grpo(stage: str, settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    rewards = settings.get("grpo.sources.rewards") or []
    names = dict.fromkeys(term["function"].rpartition(".")[2] for source in rewards for term in source)
    told = [f"rewards {', '.join(names)}"] if names else []
    told += [f"{settings[key]} answers to a prompt" for key in ("grpo.group_size",) if settings.get(key)]
    told += [f"KL {settings['grpo.kl']:g}"] if settings.get("grpo.kl") else []
    return ", ".join([*told, _pace(stage, settings, metrics)])


def _merge(stage: str, settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    count, method = metrics.get("models"), settings.get("merge.method")
    return ", ".join(filter(None, [f"of {count} models" if count else "", method or ""]))


def _export(stage: str, settings: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    difference = metrics.get("parity")
    return f"logits equal to those of what was trained, to {difference:.0e}" if difference is not None else ""


_STORIES: dict[str, tuple[str, Callable[[str, Mapping[str, Any], Mapping[str, Any]], str]]] = {
    "swap_tokenizer": ("Another tokenizer", _swap),
    "adapt": ("Adaptation to the tokenizer", _pace),
    "pretrain": ("Continued pre-training", _pace),
    "score": ("Importance", _score),
    "distill": ("Distillation", _distill),
    "distill_long": ("Distillation at a longer context", _pace),
    "sft": ("Supervised fine-tuning", _sft),
    "dpo": ("Preference optimisation", _dpo),
    "grpo": ("Reinforcement learning (GRPO)", _grpo),
    "merge": ("Merging", _merge),
    "export": ("Export", _export),
}
