"""The stages that end a pipeline: what comes out, and how good it is."""

from __future__ import annotations

from bielik_nemo.stages.alignment import ALIGNMENT, PREFERENCE, SAMPLING
from bielik_nemo.stages.stage import Stage, whole

HARNESS = ("tasks", "shots", "limit", "chat_template", "confidence", "resamples")
"""What decides the benchmarks of `evaluate`, besides their documents."""

OUTCOME = (
    Stage(
        "export",
        keys=("model.dtype", "export"),
        outputs=("hf", "parity.json"),
        free=("parallel", "run.seed", "pipeline.stages"),
        needs=("tokenizer", "model"),
        uses=("data",),
        layout=whole,
    ),
    Stage(
        "evaluate",
        keys=(
            "model.dtype",
            "evaluate.models.name",
            "evaluate.agreement_tokens",
            "evaluate.prompts",
            "evaluate.sample_tokens",
            "evaluate.batch_size",
            *(f"evaluate.harness.{name}" for name in HARNESS),
            "data.seq_length",
            "data.held_out_tokens",
            "chat.held_out_tokens",
            "chat.held_out_pairs",
            "chat.held_out_tasks",
        ),
        outputs=("metrics.json",),
        resumed=("harness",),
        # What decides `sft`, `dpo` and `grpo` changes what is read of them.
        free=(
            "evaluate.models.path",
            "sft.seq_length",
            "sft.packing",
            "sft.micro_batch_size",
            "dpo.seq_length",
            "dpo.micro_batch_size",
            *PREFERENCE,
            *SAMPLING,
            "grpo.rewards",
            "grpo.rollout_batch_size",
            "grpo.sources.rewards",
            *(f"evaluate.harness.{name}" for name in ("data_dir", "include_path", "allow_code", "download")),
            "parallel.tp",
            "run.seed",
            "pipeline.stages",
        ),
        needs=("tokenizer", "source"),
        uses=("data", "prune", "distill", "distill_long", *(stage.name for stage in ALIGNMENT)),
        # Generation with a KV cache runs on one pipeline stage.
        layout=lambda config: (config.parallel.tp, 1),
    ),
    Stage(
        "benchmark",
        keys=("model.dtype", "benchmark", "evaluate.models.name", "run.seed"),
        outputs=("metrics.json",),
        scratch=("source",),
        free=("model.source", "evaluate.models.path", "pipeline.stages"),
        uses=("export",),
    ),
    Stage(
        "quantize",
        keys=("model.dtype", "quantize", "data.seq_length", "data.held_out_tokens"),
        outputs=("formats", "metrics.json"),
        free=("pipeline.stages",),
        needs=("export", "data"),
        uses=("score",),
    ),
    Stage(
        "release",
        keys=("release",),
        outputs=("hf",),
        free=("model.source", "pipeline.stages"),
        needs=("import_hf", "export"),
        gpu=False,
    ),
)
