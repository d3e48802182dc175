"""Conversations, SFT, pairs, their reference, DPO-P, tasks, GRPO and export: resumed, repeated, exported.

Six steps of each training, a checkpoint after every second, a measurement after every third (conftest.aligned).
"""

from __future__ import annotations

import importlib
import json
import math
import signal
from pathlib import Path

import pytest
from runs import assert_whole, run_jobs, unfinished

from bielik_nemo.artifacts import read_json
from bielik_nemo.errors import GateError
from bielik_nemo.stages import GRAPH

GRPO = ["grpo", "export", "evaluate"]
DPO = ["dpo", *GRPO]
AFTER_CHAT = ["sft", "reference", *DPO]
AFTER_SFT = ["reference", *DPO]
AFTER_PAIRS = ["reference", *DPO]
TRAINING = ["sft", *AFTER_SFT]
AFTER_TASKS = ["tasks", *GRPO]
ALL = ["import_hf", "chat", "sft", "preferences", "reference", "dpo", *AFTER_TASKS]
CHANGES = {
    "model.dtype=bfloat16": ALL,
    "run.seed=7": ALL[1:],
    "chat.template=tokenizer": ALL[1:],
    "chat.held_out_fraction=0.5": ALL[1:],
    "chat.max_bad_share=0.5": [],
    "chat.held_out_tokens=300": ["evaluate"],
    "chat.held_out_pairs=4": ["evaluate"],
    "sft.sources.0.format=messages": ["chat", *AFTER_CHAT],
    "sft.sources.0.language=en": ["chat", *AFTER_CHAT],
    "sft.sources.0.weight=0.5": ["chat", *AFTER_CHAT],
    "sft.epochs=1": TRAINING,
    "sft.max_steps=8": TRAINING,
    "sft.seq_length=128": TRAINING,
    "sft.packing=false": TRAINING,
    "sft.global_batch_size=4": TRAINING,
    "sft.schedule=cosine": TRAINING,
    "sft.lr=2e-3": TRAINING,
    "sft.min_lr=1e-5": TRAINING,
    "sft.warmup_steps=2": TRAINING,
    "sft.decay_steps=1": TRAINING,
    "sft.weight_decay=0.1": TRAINING,
    "sft.reference_tokens=100": TRAINING,
    "sft.normalization=weights": TRAINING,
    "sft.forward_kl=0.5": TRAINING,
    "sft.lora.rank=8": TRAINING,
    "sft.recompute=full": [],
    "sft.micro_batch_size=2": [],
    "distill.temperature=2": TRAINING,
    "dpo.sources.0.language=en": ["preferences", *AFTER_PAIRS],
    "dpo.seq_length=300": AFTER_PAIRS,
    "dpo.epochs=1": DPO,
    "dpo.max_steps=8": DPO,
    "dpo.global_batch_size=2": DPO,
    "dpo.schedule=cosine": DPO,
    "dpo.lr=1e-3": DPO,
    "dpo.min_lr=1e-5": DPO,
    "dpo.warmup_steps=2": DPO,
    "dpo.decay_steps=1": DPO,
    "dpo.weight_decay=0.1": DPO,
    "dpo.loss=plain": DPO,
    "dpo.beta=0.2": DPO,
    "dpo.beta_rejected=0.2": DPO,
    "dpo.penalty=5": DPO,
    "dpo.label_smoothing=0.1": DPO,
    "dpo.length_normalized=true": DPO,
    "dpo.gate_tolerance=0.1": [],
    "dpo.recompute=full": [],
    "chat.held_out_tasks=2": ["evaluate"],
    "grpo.sources.0.language=en": AFTER_TASKS,
    "grpo.sources.0.rewards.0.weight=2": AFTER_TASKS,
    "grpo.engine=nemo_rl grpo.rollouts=vllm": GRPO,
    "grpo.epochs=2": GRPO,
    "grpo.max_steps=8": GRPO,
    "grpo.prompts_per_rollout=2": GRPO,
    "grpo.global_batch_size=4": GRPO,
    "grpo.passes_per_rollout=2": GRPO,
    "grpo.group_size=2": GRPO,
    "grpo.rollouts=vllm": GRPO,
    "grpo.max_prompt_tokens=63": GRPO,
    "grpo.max_answer_tokens=15": GRPO,
    "grpo.temperature=0.9": GRPO,
    "grpo.top_p=0.9": GRPO,
    "grpo.top_k=9": GRPO,
    "grpo.stop=[x]": GRPO,
    "grpo.seq_length=256": GRPO,
    "grpo.schedule=cosine": GRPO,
    "grpo.lr=1e-3": GRPO,
    "grpo.min_lr=1e-5": GRPO,
    "grpo.warmup_steps=2": GRPO,
    "grpo.decay_steps=1": GRPO,
    "grpo.weight_decay=0.1": GRPO,
    "grpo.scale_advantages=false": GRPO,
    "grpo.normalization=constant": GRPO,
    "grpo.clip_low=0.1": GRPO,
    "grpo.clip_high=0.3": GRPO,
    "grpo.kl=0": GRPO,
    "grpo.filter_groups=false": GRPO,
    "grpo.save_answers=false": GRPO,
    "grpo.rewards.timeout_s=9": [],
    "grpo.mismatch_tolerance=0.1": [],
    "grpo.rollout_batch_size=8": [],
    "grpo.recompute=full": [],
    "trainer.keep_best=true": TRAINING,
    "trainer.snapshot_every=2": TRAINING,
    "trainer.precision=bf16-mixed": TRAINING,
    "optim.beta1=0.8": TRAINING,
    "optim.beta2=0.9": TRAINING,
    "optim.clip_grad=0.5": TRAINING,
    "merge.weight=2": [],
    # Not read there: each training stage has its own.
    "optim.lr=1": [],
    "optim.weight_decay=0.5": [],
    "trainer.max_steps=99": [],
    "data.seq_length=64": ["evaluate"],  # which reads it where there is text
    "parallel=tp2": [],
}

MOMENTS = {
    "chat: tokens without their index": ("chat", "os.rename", "chat/train/00000.idx", 1),
    "sft: between two checkpoints": ("sft", "open", "sft/metrics.jsonl", 5),
    "sft: in a checkpoint": ("sft", "open", "sft/checkpoints/step=3/weights/.metadata.tmp", 1),
    "sft: all but the manifest": ("sft", "os.rename", "sft/manifest.json", 1),
    "reference: all but the manifest": ("reference", "os.rename", "reference/manifest.json", 1),
    "dpo: between two checkpoints": ("dpo", "open", "dpo/metrics.jsonl", 5),
    "dpo: all but the manifest": ("dpo", "os.rename", "dpo/manifest.json", 1),
    "grpo: between two updates of a rollout": ("grpo", "open", "grpo/metrics.jsonl", 5),
    "grpo: all but the manifest": ("grpo", "os.rename", "grpo/manifest.json", 1),
    "dpo: in a checkpoint": ("dpo", "open", "dpo/checkpoints/step=3/weights/.metadata.tmp", 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_repeats_what_depends_on_it(change: str, aligned):
    config = aligned.config(aligned.finished, *change.split())
    assert unfinished(config, aligned.finished) == CHANGES[change]


def test_every_setting_that_decides_something_is_tried_above():
    tried = {change.split("=")[0].replace(".0.", ".") for change in CHANGES}
    own = {"chat", "sft", "preferences", "reference", "dpo", "tasks", "grpo"}
    decisive = {key for name in own for key in GRAPH[name].keys}
    assert [key for key in sorted(decisive) if not any(f"{name}.".startswith(f"{key}.") for name in tried)] == []


def test_other_conversations_repeat_what_was_trained_on_them(aligned, tmp_path: Path):
    line = {"messages": [{"role": "user", "content": "Kto?"}, {"role": "assistant", "content": "Ja."}]}
    (tmp_path / "other.jsonl").write_text(json.dumps(line) + "\n")
    config = aligned.config(aligned.finished, f"sft.sources.0.path='{tmp_path}/other.jsonl'")
    assert unfinished(config, aligned.finished) == ["chat", *AFTER_CHAT]


@pytest.fixture(scope="module")
def outcomes(aligned, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """Each moment's run directory, with what happened in the killed and in the restarted process."""
    jobs = [
        {
            "run_dir": str(aligned.copy("killed", before=stage)),
            "overrides": aligned.overrides,
            "stages": aligned.stages[: aligned.stages.index(stage) + 1],
            "kill": kill,
        }
        for stage, *kill in MOMENTS.values()
    ]
    results = run_jobs(
        [{**job, "kill": kill} for job in jobs for kill in (job["kill"], None)], tmp_path_factory.mktemp("kill")
    )
    pairs = zip(results[::2], results[1::2], strict=True)
    return {name: (Path(job["run_dir"]), *both) for name, job, both in zip(MOMENTS, jobs, pairs, strict=True)}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_this_moment_changes_nothing(moment: str, aligned, outcomes):
    """Bit for bit, also the order in which conversations and pairs are drawn."""
    run_dir, killed, restarted = outcomes[moment]
    stage = MOMENTS[moment][0]
    assert killed["ended"] == signal.SIGKILL, f"never came to it; see {run_dir}.out"
    assert restarted["ended"] == 0, f"see {run_dir}.out"
    assert aligned.result(run_dir, stage) == aligned.result(aligned.finished, stage)
    assert_whole(run_dir)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_training_leaves_its_curve_and_what_a_batch_is_made_of(stage: str, aligned):
    records = [json.loads(line) for line in (aligned.finished / stage / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    assert all(math.isfinite(value) for record in records for value in record.values() if isinstance(value, float))
    batches = read_json(aligned.finished / stage / "batches.json")
    assert batches["steps"] == 6 and 0 < batches["filled"] <= 1
    parity = aligned.manifest(aligned.finished, "export")
    assert parity.metrics["model"] == "grpo" and parity.metrics["parity"] <= 1e-4


def test_sft_learns_the_answers(aligned):
    """Sums that it has not seen, in the same words."""
    metrics = aligned.manifest(aligned.finished, "sft").metrics
    assert metrics["held_out_loss"] < metrics["held_out_loss_before"] - 0.2


def test_the_first_loss_of_dpo_is_ln_2(aligned):
    lines = (aligned.finished / "dpo" / "metrics.jsonl").read_text().splitlines()
    first = next(record for record in map(json.loads, lines) if "loss" in record)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_evaluation_measures_what_training_did(aligned):
    """The same held-out answers after SFT, pairs after DPO, tasks after GRPO; the reference stands alone."""
    found = read_json(aligned.finished / "evaluate" / "metrics.json")
    last = {}
    for stage in ("sft", "dpo"):
        lines = (aligned.finished / stage / "metrics.jsonl").read_text().splitlines()
        last[stage] = [record for record in map(json.loads, lines) if "held_out_loss" in record][-1]
    assert list(found["answer_loss"]) == ["source", "sft", "dpo", "grpo"] and "held_out_loss" not in found
    assert found["answer_loss"]["sft"] == pytest.approx(last["sft"]["held_out_loss"], rel=1e-6)
    assert list(found["preference"]["sft"]) == ["likelier"]
    measured = found["preference"]["dpo"]
    for name in ("accuracy", "margin", "chosen_log_ratio", "rejected_log_ratio"):
        assert measured[name] == pytest.approx(last["dpo"][f"held_out_{name}"], rel=1e-5, abs=1e-6), name
    assert 0 < measured["kl"] < 0.1 and 0 <= measured["likelier"] <= 1
    lines = (aligned.finished / "grpo" / "metrics.jsonl").read_text().splitlines()
    before, *_, after = [record for record in map(json.loads, lines) if "held_out_reward" in record]
    for model, record in (("dpo", before), ("grpo", after)):
        for name, value in found["tasks"][model].items():
            assert value == pytest.approx(record[f"held_out_{name}"], rel=1e-5, abs=1e-6), (model, name)


def test_references_of_another_model_stop_dpo_before_it_is_trained(aligned):
    """Log-probabilities that are off by a nat: as if another model's had been kept."""
    from safetensors.numpy import load_file, save_file

    run_dir = aligned.copy("tampered", before="dpo")
    file = run_dir / "reference" / "log_probs.safetensors"
    save_file({name: each - 1 for name, each in load_file(file).items()}, file)
    stage = importlib.import_module("bielik_nemo.stages.dpo")
    (run_dir / "dpo").mkdir()
    with pytest.raises(GateError):
        stage.run(aligned.config(run_dir), run_dir)
    assert not (run_dir / "dpo" / "megatron").exists()
