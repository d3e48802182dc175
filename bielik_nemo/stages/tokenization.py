"""The stages that compare tokenizers."""

from __future__ import annotations

from bielik_nemo.stages.stage import Stage

TOKENIZATION = (
    Stage(
        "tokenizers",
        keys=("tokenizers.documents", "data.sources.language"),
        outputs=("metrics.json",),
        scratch=("builtin",),
        free=("model.source", "tokenizers.compared", "data.sources.path", "data.sources.text_key"),
        gpu=False,
    ),
)
