"""The stages that compare tokenizers, give the model another one, and train what is nearest to the words."""

from __future__ import annotations

from dataclasses import replace

from bielik_nemo.stages.compression import COMPRESSION
from bielik_nemo.stages.stage import Stage

_PRETRAIN = next(stage for stage in COMPRESSION if stage.name == "pretrain")

TOKENIZATION = (
    Stage(
        "tokenizers",
        keys=("tokenizers.documents", "data.sources.language"),
        outputs=("metrics.json",),
        scratch=("builtin",),
        free=("model.source", "tokenizers.compared", "data.sources.path", "data.sources.text_key"),
        gpu=False,
    ),
    Stage(
        "swap_tokenizer",
        keys=(
            "model.dtype",
            "swap_tokenizer.tokens",
            "swap_tokenizer.dimensions",
            "swap_tokenizer.epochs",
            "swap_tokenizer.min_count",
            "data.held_out_fraction",
            "run.seed",
        ),
        outputs=("megatron", "architecture.json", "tokenizer", "swap.json", "parity.json"),
        scratch=("source", "swapped"),
        free=(
            "model.source",
            "swap_tokenizer.tokenizer",
            "data.sources.path",
            "data.sources.text_key",
            "export.parity_tokens",
            "export.parity_tolerance",
        ),
        needs=("import_hf",),
    ),
    replace(
        _PRETRAIN,
        name="adapt",
        keys=tuple("adapt" if key == "pretrain" else key for key in _PRETRAIN.keys),
    ),
)
