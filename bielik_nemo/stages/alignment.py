"""The stages of alignment: conversations and SFT, preference pairs and DPO, tasks and GRPO, merging."""

from __future__ import annotations

from bielik_nemo.stages.stage import TRAINING, Stage, whole

PACE = ("epochs", "max_steps", "seq_length", "global_batch_size", "schedule", "lr", "min_lr", "warmup_steps")
PACE += ("decay_steps", "weight_decay")
"""Settings of its own that both ways of training have."""

BETAS = ("optim.beta1", "optim.beta2", "optim.clip_grad")
"""What they take of `optim`."""

RHYTHM = tuple(key for key in TRAINING if key != "trainer.recompute")
"""What of the rhythm of training they take; whether activations are computed again, each says for itself."""

COPIED = ("data.held_out_fraction", "data.held_out_tokens", "data.language_weights", "data.separate_documents")
"""What they have no use for, and only copy with the sections in which `Config.paced_by` puts theirs."""

PREFERENCE = tuple(f"dpo.{name}" for name in ("loss", "beta", "beta_rejected", "penalty"))
PREFERENCE += ("dpo.label_smoothing", "dpo.length_normalized")
"""The loss of preference optimisation."""

SAMPLING = ("rollouts", "max_prompt_tokens", "max_answer_tokens", "temperature", "top_p", "top_k", "stop")
SAMPLING = tuple(f"grpo.{name}" for name in SAMPLING)
"""How answers to tasks are sampled."""

POLICY = ("engine", "prompts_per_rollout", "passes_per_rollout", "group_size", "scale_advantages", "normalization")
POLICY += ("clip_low", "clip_high", "kl", "filter_groups", "save_answers")
POLICY = (*SAMPLING, *(f"grpo.{name}" for name in POLICY))
"""The same, and the loss of reinforcement learning."""

TRAINED = ("megatron", "architecture.json", "metrics.jsonl", "batches.json")
"""What they leave."""

ALIGNMENT = (
    Stage(
        "chat",
        keys=(
            "chat.template",
            "chat.held_out_fraction",
            "sft.sources.format",
            "sft.sources.language",
            "sft.sources.weight",
            "run.seed",
        ),
        outputs=("train", "held_out", "summary.json", "skipped.jsonl"),
        free=("sft.sources.path", "chat.max_bad_share", "pipeline.stages"),
        resumed=("skipped.jsonl",),
        needs=("tokenizer",),
        gpu=False,
    ),
    Stage(
        "sft",
        keys=(
            "model.dtype",
            *(f"sft.{name}" for name in PACE),
            "sft.packing",
            "sft.reference_tokens",
            "sft.normalization",
            "sft.forward_kl",
            "sft.lora",
            "distill.temperature",
            *BETAS,
            "trainer.precision",
            "trainer.keep_best",
            "trainer.snapshot_every",
            "run.seed",
        ),
        outputs=TRAINED,
        scratch=("checkpoints", "best"),
        free=(
            "sft.micro_batch_size",
            "sft.recompute",
            "chat.held_out_tokens",
            "distill.gate_max_loss",
            "parallel",
            "cluster",
            *RHYTHM,
            *COPIED,
            "trainer.max_hours",
            "pipeline.stages",
        ),
        needs=("tokenizer", "source", "model", "chat"),
        layout=whole,
        trains=True,
    ),
    Stage(
        "preferences",
        keys=("chat.template", "chat.held_out_fraction", "dpo.sources.language", "run.seed"),
        outputs=("train", "held_out", "summary.json", "skipped.jsonl"),
        free=("dpo.sources.path", "chat.max_bad_share", "pipeline.stages"),
        resumed=("skipped.jsonl",),
        needs=("tokenizer",),
        gpu=False,
    ),
    Stage(
        "reference",
        keys=("model.dtype", "dpo.seq_length", "trainer.precision"),
        outputs=("log_probs.safetensors", "reference.json"),
        free=("dpo.micro_batch_size", "parallel", "cluster", "run.seed", "pipeline.stages"),
        needs=("tokenizer", "model", "preferences"),
        layout=whole,
        trains=True,
    ),
    Stage(
        "dpo",
        keys=(
            "model.dtype",
            *(f"dpo.{name}" for name in PACE),
            *PREFERENCE,
            *BETAS,
            "trainer.precision",
            "trainer.keep_best",
            "trainer.snapshot_every",
            "run.seed",
        ),
        outputs=TRAINED,
        scratch=("checkpoints", "best"),
        free=(
            "dpo.micro_batch_size",
            "dpo.recompute",
            "dpo.gate_tolerance",
            "chat.held_out_pairs",
            "parallel",
            "cluster",
            *RHYTHM,
            *COPIED,
            "optim.reference_tokens",
            "trainer.max_hours",
            "pipeline.stages",
        ),
        needs=("tokenizer", "model", "preferences", "reference"),
        layout=whole,
        trains=True,
    ),
    Stage(
        "tasks",
        keys=("chat.template", "chat.held_out_fraction", "grpo.sources.language", "grpo.sources.rewards", "run.seed"),
        outputs=("train.jsonl", "held_out.jsonl", "summary.json", "skipped.jsonl"),
        free=("grpo.sources.path", "chat.max_bad_share", "pipeline.stages"),
        resumed=("skipped.jsonl",),
        needs=("tokenizer",),
        gpu=False,
    ),
    Stage(
        "grpo",
        keys=(
            "model.dtype",
            *(f"grpo.{name}" for name in PACE),
            *POLICY,
            "grpo.sources.rewards",
            *BETAS,
            "trainer.precision",
            "trainer.keep_best",
            "trainer.snapshot_every",
            "run.seed",
        ),
        outputs=(*TRAINED, "rollouts"),
        scratch=("checkpoints", "best"),
        resumed=("rollouts", "nemo_rl"),
        free=(
            "grpo.micro_batch_size",
            "grpo.recompute",
            "grpo.rollout_batch_size",
            "grpo.mismatch_tolerance",
            "grpo.rewards",
            "chat.held_out_tasks",
            "parallel",
            "cluster",
            *RHYTHM,
            *COPIED,
            "optim.reference_tokens",
            "trainer.max_hours",
            "pipeline.stages",
        ),
        needs=("tokenizer", "model", "tasks"),
        layout=whole,
        trains=True,
    ),
    Stage(
        "merge",
        keys=("model.dtype", "merge.method", "merge.weight", "merge.models.weight", "merge.snapshots"),
        outputs=("hf", "architecture.json", "merge.json"),
        scratch=("sources",),
        free=("merge.models.path", "parallel.tp", "parallel.pp", "run.seed", "pipeline.stages"),
        needs=("tokenizer", "model"),
        layout=whole,
    ),
)
