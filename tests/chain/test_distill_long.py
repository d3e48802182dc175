"""The stage `distill_long`: the student goes on at another length, and what is exported says so.

The tiny model has a context of 1024 and a RoPE base of 1e6; its first phase has 128 tokens to a sequence.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bielik_nemo.config import CHAIN

STAGES = f"pipeline.stages=[{','.join([*CHAIN[:5], 'distill_long', *CHAIN[5:]])}]"
SETTINGS = (
    "distill_long.seq_length=256",
    "distill_long.global_batch_size=2",
    "distill_long.max_steps=3",
    "distill_long.warmup_steps=0",
    "distill_long.lr=1e-3",
    "distill_long.min_lr=1e-3",
)


def records(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "distill_long" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def longer(chain) -> Path:
    """The finished run with a second phase of three steps of 2 * 256 tokens."""
    run_dir = chain.copy("longer", before="export")
    chain.run(run_dir, STAGES, *SETTINGS, "distill_long.rotary_base=5e6")
    return run_dir


def test_it_goes_on_from_the_first_phase(longer, chain):
    """Which is not done again. It begins near where that ended, though at another length and RoPE base, and moves on.

    Whether three steps make it better depends on the text, which is another one on each machine.
    """
    assert chain.manifest(longer, "distill").started == chain.manifest(chain.finished, "distill").started
    found = records(longer)
    assert [record["tokens"] for record in found if "loss" in record] == [512, 1024, 1536]
    held_out = [record["held_out_loss"] for record in found if "held_out_loss" in record]
    first = (longer / "distill" / "metrics.jsonl").read_text().splitlines()
    ended = [json.loads(line)["held_out_loss"] for line in first if "held_out_loss" in line][-1]
    assert held_out[0] == pytest.approx(ended, rel=0.2)
    assert abs(held_out[-1] - held_out[0]) > 1e-4


def test_the_export_has_the_new_base_and_context(longer, chain):
    config = json.loads((longer / "export" / "hf" / "config.json").read_text())
    assert (config["rope_theta"], config["max_position_embeddings"]) == (5e6, 1024)
    assert chain.manifest(longer, "export").metrics["model"] == "distill_long"
    assert chain.manifest(longer, "export").metrics["parity"] < 1e-4


def test_the_last_student_is_evaluated(longer):
    """On 128 tokens at a time, where its held-out loss was measured on 256."""
    evaluated = json.loads((longer / "evaluate" / "metrics.json").read_text())["held_out_loss"]["distilled"]
    measured = [record["held_out_loss"] for record in records(longer) if "held_out_loss" in record][-1]
    assert evaluated == pytest.approx(measured, rel=0.2)


def test_shapes_of_a_longer_context(longer, chain):
    """Beyond the teacher's own 1024 both take the base; within it, only the student does."""
    from bielik_nemo.stages import distill_long
    from bielik_nemo.stages.nodes import known

    for length, context, base in ((256, 1024, 1e6), (2048, 2048, 5e6)):
        config = chain.config(longer, STAGES, f"distill_long.seq_length={length}", "distill_long.rotary_base=5e6")
        phase = distill_long.phase(config, longer)
        student, teacher = known(phase.student), known(phase.teacher)
        assert (student.rotary_base, student.max_position_embeddings) == (5e6, context)
        assert (teacher.rotary_base, teacher.max_position_embeddings) == (base, context)
        assert phase.gate.expected_loss is None and phase.gate.held_out.seq_length == length
