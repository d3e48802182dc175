"""Tokens and FLOPs by hand, of the model in conftest.py.

Forward, source: 2*1992 + 4*2 layers*2 heads*4*10 tokens = 3984 + 640 = 4624. Target: 2*1208 + 4*1*2*4*10 = 2416 + 320 =
2736.
"""

import pytest

from bielik_nemo.architecture import Architecture
from bielik_nemo.budget import compute, estimate
from bielik_nemo.config import Config, compose
from bielik_nemo.config_prune import Target
from bielik_nemo.config_training import DistillLong
from bielik_nemo.errors import ConfigError
from bielik_nemo.validation.shapes import source_architecture


def test_parameters_are_those_of_source_and_target(config: Config, source: Architecture):
    found = estimate(config, source)
    assert (found.source.num_parameters(), found.target.num_parameters()) == (2792, 2008)
    assert (found.source.num_parameters("once"), found.target.num_parameters("once")) == (1992, 1208)
    config.pipeline.stages = ["import_hf", "export"]
    assert estimate(config, source).target == source  # nothing is cut


def test_a_target_larger_than_the_source_has_no_budget(config: Config, source: Architecture):
    config.prune.target.num_layers = 3
    with pytest.raises(ConfigError, match=r"prune.target.num_layers: found 3, allowed: 1 to 2"):
        estimate(config, source)


@pytest.mark.parametrize(
    "stage, tokens, flops",
    [
        ("distill", 120, 3 * 2736 + 4624),  # 3 steps * 4 * 10
        ("teacher", 120, 4624),
        ("pretrain", 200, 3 * 4624),  # 5 steps * 40
        ("distill_long", 120, 3 * (2416 + 2 * 320) + 3984 + 2 * 640),  # 2 steps * 3 * 20
        ("sft", 7 * 6 * 30, 3 * (2416 + 3 * 320)),
        ("reference", None, 2416 + 2 * 320),  # how many tokens pairs have is not known here
        ("dpo", None, 3 * (2416 + 2 * 320)),
        ("grpo", None, None),  # sampling is a matter of bandwidth
        ("data", None, None),
        ("export", None, None),
        ("score", 5 * 12, 4624),  # 5 samples of 12 tokens, whose attention is taken for that of data.seq_length
    ],
)
def test_tokens_and_flops_of_a_stage(
    stage: str, tokens: int | None, flops: float | None, config: Config, source: Architecture, target: Architecture
):
    config.pretrain.max_steps = 5
    config.distill_long = DistillLong(20, max_steps=2, global_batch_size=3)
    config.sft.max_steps, config.sft.global_batch_size, config.sft.seq_length = 7, 6, 30
    config.dpo.seq_length = 20
    config.prune.calibration.samples, config.prune.calibration.seq_length = 5, 12
    assert compute.tokens(config, stage) == tokens
    assert compute.flops(config, stage, source, target) == flops


def test_a_teacher_costs_its_pass_where_it_is_asked(config: Config, source: Architecture, target: Architecture):
    config.sft.seq_length, config.sft.forward_kl = 10, 0.5
    assert compute.flops(config, "sft", source, target) == 3 * 2736 + 4624
    config.pipeline.stages = ["import_hf", "data", "score", "prune", "teacher", "distill"]
    assert compute.flops(config, "distill", source, target) == 3 * 2736
    assert compute.tokens(config, "sft") is None  # epochs of nobody knows how many


def test_ranking_candidates_counts(config: Config, source: Architecture, target: Architecture):
    """2 candidates for 1 step of 40 tokens: 40 * (2 * 3 * 2736 + 4624) = 841,600 FLOPs; alone 0 steps cost nothing.

    At another temperature the cache gives no loss and the teacher runs twice, 40 * 4624 = 184,960 FLOPs more, unless
    its best ids are kept.
    """
    config.prune.search.top_k = 2
    config.pipeline.stages = ["import_hf", "data", "score", "search", "prune", "distill"]
    assert compute.search_flops(config, source, target) == 0 and compute.flops(config, "search", source, target) is None
    config.prune.search.distill_steps = 1
    assert compute.search_flops(config, source, target) == 841_600
    assert compute.flops(config, "search", source, target) * compute.tokens(config, "search") == 841_600
    config.distill.temperature = 2.0
    assert compute.search_flops(config, source, target) == 841_600 + 184_960
    config.teacher.kind = "top_k"
    assert compute.search_flops(config, source, target) == 841_600


def test_a_student_alone_costs_three_passes():
    """The teacher's one pass is the difference."""
    source, target = Architecture(2, 8, 16, 2, 1, 4, 10, False), Architecture(1, 8, 12, 2, 1, 4, 10, False)
    flops = compute.flops_per_token
    assert flops(None, target, 16) == flops(target, target, 16) * 3 / 4
    assert flops(source, target, 16) - flops(None, target, 16) == flops(None, source, 16) / 3


def test_full_size():
    """6 * 7,346,130,944 + 2 * 11,037,200,384 + 12*40*4096*4096 + 4*50*4096*4096 = 7.7558e10 FLOPs per token.

    8,000 * 512 * 4096 = 16,777,216,000 tokens: 1.3012e21; at 0.4 * 989e12: 3.2892e6 s = 913.7 GPU-hours.
    """
    config = compose("bielik_minitron_7b")
    config.prune.target = Target(num_layers=40, ffn_hidden_size=11264)
    found = estimate(config, source_architecture(config))
    flops, tokens = compute.flops(config, "distill", found.source, found.target), compute.tokens(config, "distill")
    assert tokens == 16_777_216_000
    assert flops == pytest.approx(7.7558e10, rel=1e-4)
    assert tokens * flops / (compute.ASSUMED_MFU * 989e12) / 3600 == pytest.approx(913.7, rel=1e-3)
