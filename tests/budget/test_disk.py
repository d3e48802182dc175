"""Disk by hand, of the model in conftest.py: float32, source 2792 * 4 = 11,168 bytes, target 2008 * 4 = 8032."""

from dataclasses import replace

import pytest

from bielik_nemo.architecture import Architecture
from bielik_nemo.budget import disk, estimate, size_text
from bielik_nemo.config import Config


def test_disk_counts_the_configured_stages(config: Config, source: Architecture):
    """Training keeps 12 bytes a parameter, three times, and the weights."""
    found = estimate(config, source).disk
    assert found == {"import_hf": 11_168, "prune": 8032, "distill": 3 * 24_096 + 8032, "export": 8032}
    config.pipeline.stages = ["import_hf", "pretrain", "export"]
    assert estimate(config, source).disk == {"import_hf": 11_168, "pretrain": 2792 * 40, "export": 11_168}


def test_candidates_and_what_the_teacher_left_for_them(config: Config, source: Architecture):
    """Two trained copies of 2008 weights of 4 bytes beside two cut ones: 32,128 bytes until they are ranked.

    What the teacher leaves for one step of 40 tokens of one draw is 40 * (2 + 1/8 + 2) = 165 bytes; of 5 best ids 40 *
    5 * 4 = 800. At another temperature draws are of no use, and none are left.
    """
    config.prune.search.top_k, config.teacher.samples_per_token, config.teacher.top_k = 2, 1, 5
    config.pipeline.stages = ["import_hf", "data", "score", "search", "prune", "distill"]
    assert "search" not in estimate(config, source).disk
    config.prune.search.distill_steps = 1
    assert estimate(config, source).disk["search"] == 32_128 + 165
    config.distill.temperature = 2.0
    assert estimate(config, source).disk["search"] == 32_128
    config.teacher.kind = "top_k"
    assert estimate(config, source).disk["search"] == 32_128 + 800


def test_snapshots_and_merging_take_disk(config: Config, source: Architecture):
    """Nothing is cut: 11,168 bytes a copy. SFT: checkpoints 3 * 3 copies, its result, 9 // 4 = 2 snapshots; merging two
    of them writes both once more, then the mean. How many DPO leaves is not known here."""
    config.pipeline.stages = ["import_hf", "sft", "dpo", "merge", "export"]
    config.sft.max_steps, config.trainer.snapshot_every, config.merge.snapshots = 9, 4, 2
    copies = {"import_hf": 1, "sft": 12, "dpo": 10, "merge": 3, "export": 1}
    assert estimate(config, source).disk == {stage: 11_168 * count for stage, count in copies.items()}


@pytest.mark.parametrize("n, measured", [(8, 12.1), (20, 22.3), (50, 43.4)])
def test_bytes_that_a_teacher_leaves_for_a_token(n: int, measured: float, config: Config, source: Architecture):
    """4.55, 8.91 and 17.56 different ids of 2 bytes on SmolLM2, n / 8 and 2 bytes; 3 for ids above 65,535."""
    config.teacher.samples_per_token = n
    assert disk.teacher_bytes_per_token(config, source) == pytest.approx(measured, rel=0.01)
    more = disk.teacher_bytes_per_token(config, replace(source, vocab_size=2**16 + 1)) - measured
    assert more == pytest.approx((measured - n / 8 - 2) / 2, rel=0.05)


@pytest.mark.parametrize(
    "size, text", [(0, "0.0 MiB"), (2**20, "1.0 MiB"), (1.5 * 2**30, "1.5 GiB"), (2**40, "1,024.0 GiB")]
)
def test_size_text(size: float, text: str):
    assert size_text(size) == text
