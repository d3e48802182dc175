"""Hand arithmetic for a small model: 2 layers, hidden 8, FFN 16, 2 heads of 4 in 1 group, vocabulary 100.

Layer: Q and O 8*8 each, K and V 8*4 each: 192; FFN 3*8*16 = 384; norms 16: 592. Two: 1184. Last norm 8. One embedding
matrix 100*8 = 800, untied 1600. All: 2792; with one matrix 1992. Padded vocabulary: 128, a matrix of 1024.
Target: 1 layer of FFN 8: 192 + 192 + 16 = 400; + 8 + 1600 = 2008; with one matrix 1208.
"""

from dataclasses import replace

import pytest

from bielik_nemo import budget
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config, Shape, compose
from bielik_nemo.config_prune import Target
from bielik_nemo.config_training import DistillLong
from bielik_nemo.errors import ConfigError
from bielik_nemo.validation.shapes import source_architecture


@pytest.fixture
def config() -> Config:
    config = Config()
    config.model.shape = Shape(2, 8, 16, 2, 1, 4, 100, max_position_embeddings=64)
    config.prune.target = Target(num_layers=1, ffn_hidden_size=8)
    config.data.seq_length, config.data.micro_batch_size, config.data.global_batch_size = 10, 2, 4
    config.trainer.max_steps = 3
    return config


def estimate(config: Config) -> budget.Budget:
    return budget.estimate(config, source_architecture(config))


def test_tokens_and_flops(config: Config):
    """3 steps * 4 * 10 = 120 tokens.

    Forward, source: 2*1992 + 4*2 layers*2 heads*4*10 = 3984 + 640 = 4624. Target: 2*1208 + 4*1*2*4*10 = 2416 + 320 =
    2736. Per token 3*2736 + 4624 = 12832; in all 1,539,840.
    """
    found = estimate(config)
    assert (found.source.num_parameters(), found.target.num_parameters()) == (2792, 2008)
    assert (found.source.num_parameters("once"), found.target.num_parameters("once")) == (1992, 1208)
    assert (found.tokens, found.flops) == (120, 1_539_840)


def test_continued_pretraining(config: Config):
    """5 steps * 40 = 200 tokens at 3 * 4624 = 13,872: 2,774,400 beside the 1,539,840 of distillation. The source alone:
    3240 padded parameters of 16 bytes, logits 2 * 20 rows * 128 * 4, activations twice those of the target's layer, of
    FFN 16: 20 rows * 2 * (32 + 24 + 48) * 4. On disk 3 * 12 bytes of each of 2792, and 4."""
    config.pipeline.stages = ["import_hf", "data", "pretrain", "export"]
    config.pretrain.max_steps = 5
    found = estimate(config)
    assert (found.tokens, found.pretrained, found.flops) == (0, 200, 2_774_400)
    assert sum(found.memory.values()) == 3240 * 16 + 20_480 + 16_640
    assert found.disk["pretrain"] == 2792 * 40
    assert "200 tokens = 5 steps * 4 sequences * 10" in budget.table(config, found)
    config.pipeline.stages = ["import_hf", "data", "pretrain", "score", "prune", "distill"]
    both = estimate(config)
    assert (both.tokens, both.flops) == (120, 2_774_400 + 1_539_840)
    assert sum(both.memory.values()) == 89_376 > sum(found.memory.values())  # the target beside its teacher needs more


def test_a_second_phase_of_distillation(config: Config):
    """2 steps * 3 * 20 = 120 tokens of 20 at a time: forward, source 3984 + 2 * 640 = 5264, target 2416 + 2 * 320 =
    3056; per token 3 * 3056 + 5264 = 14,432. The teacher runs beside the student, though before the first phase."""
    config.pipeline.stages = ["prune", "distill", "distill_long"]
    config.distill_long = DistillLong(20, max_steps=2, global_batch_size=3, micro_batch_size=3)
    found = estimate(config)
    assert (found.tokens, found.longer, found.flops) == (120, 120, 1_539_840 + 120 * 14_432)
    # 60 rows in place of 20: of the logits and of the activations three times as much.
    assert (found.memory["logits"], found.memory["activations"]) == (3 * 30_720, 3 * 6_400)
    config.pipeline.stages = ["prune", "teacher", "distill", "distill_long"]
    assert estimate(config).memory == found.memory
    assert "120 tokens = 2 steps * 3 sequences * 20" in budget.table(config, found)


def test_gpu_hours_only_when_the_peak_is_known(config: Config):
    """1,539,840 FLOPs at 40 % of 1 TFLOP/s: 3.8496e-6 s = 1.06933e-9 hours."""
    assert estimate(config).gpu_hours is None
    config.cluster.gpu_peak_tflops = 1.0
    assert estimate(config).gpu_hours == pytest.approx(3.8496e-6 / 3600)


def test_memory_in_fp32_on_one_device(config: Config):
    """Student 2008 with its vocabulary padded from 100 to 128: 408 + 2*1024 = 2456. Teacher: 1192 + 2048 = 3240.

    Weights 4 bytes, gradients 4, Adam 8. Logits: 3 * 2*10 rows * 128 * 4 = 30,720. Activations: 20 rows * 1 layer *
    (4*8 + 4*(2*2 + 2*1) + 3*8 = 80) * 4 = 6,400.
    """
    assert estimate(config).memory == {
        "student weights": 9824,
        "gradients": 9824,
        "optimizer": 19_648,
        "teacher weights": 12_960,
        "logits": 30_720,
        "activations": 6400,
    }


def test_activations_of_a_split_sequence_and_recomputed_ones(config: Config):
    """cp 2 halves the rows: 10; tp 2 with sequence parallelism 4*8/2 + (24 + 24)/2 = 40 per row, 40 * 10 * 4 bytes.

    Computed again: the layer's input, 8, and one layer, 80: 88 * 20 * 4.
    """
    config.trainer.recompute = "full"
    assert estimate(config).memory["activations"] == 7040
    config.trainer.recompute = "selective"
    assert estimate(config).memory["activations"] == 6400
    config.parallel.tp, config.parallel.cp, config.parallel.sequence_parallel = 2, 2, True
    assert estimate(config).memory["activations"] == 1600


def test_memory_in_bf16_split_over_gpus(config: Config):
    """tp 1 * pp 2 on 4 GPUs: 2 copies, each micro-batch count 4 / (2*2) = 1. Two layers in both models.

    Student (2 layers of FFN 8): 2*400 + 8 = 808, / 2 = 404, + one padded matrix 1024 = 1428: weights 2, gradients 4,
    Adam with its master copy 12 / 2 copies. Teacher: 1192 / 2 + 1024 = 1620. Activations: one micro-batch in flight, so
    half of 2 layers: 20 * 80 * 2.
    """
    config.prune.target.num_layers = None
    config.parallel.pp, config.cluster.devices_per_node = 2, 4
    config.cluster.gpu_memory_gib, config.trainer.precision = 1.0, "bf16-mixed"
    assert estimate(config).memory == {
        "student weights": 2856,
        "gradients": 5712,
        "optimizer": 8568,
        "teacher weights": 3240,
        "logits": 15_360,
        "activations": 3200,
    }
    config.data.global_batch_size = 8  # two micro-batches: the first stage holds both
    assert estimate(config).memory["activations"] == 6400


def test_tensor_parallelism_divides_all_but_norms_and_residual(config: Config):
    """tp 2 (2 groups): weights halved; activations 4*8 + (4*(2*2 + 2*2) + 3*8) / 2 = 32 + 28 = 60 of 4*8 + 56 = 88."""
    config.model.shape.num_query_groups = 2
    whole = estimate(config).memory
    config.parallel.tp = 2
    split = estimate(config).memory
    assert split["student weights"] * 2 == whole["student weights"]
    assert split["logits"] * 2 == whole["logits"]
    assert split["activations"] / whole["activations"] == pytest.approx(60 / 88)


def test_tied_embeddings_are_held_once(config: Config):
    """Student 408 + 1024 = 1432 parameters of 4 bytes."""
    config.model.shape.tie_embeddings = True
    assert estimate(config).memory["student weights"] == 4 * 1432


def test_a_student_alone_costs_three_passes():
    """The teacher's one pass is the difference."""
    source, target = Architecture(2, 8, 16, 2, 1, 4, 10, False), Architecture(1, 8, 12, 2, 1, 4, 10, False)
    flops = budget.flops_per_token
    assert flops(None, target, 16) == flops(target, target, 16) * 3 / 4
    assert flops(source, target, 16) - flops(None, target, 16) == flops(None, source, 16) / 3


def test_disk_counts_the_configured_stages(config: Config):
    """float32: source 2792 * 4, target 2008 * 4 = 8032; training keeps 12 bytes a parameter, three times,
    and the weights."""
    assert estimate(config).disk == {"import_hf": 11_168, "prune": 8032, "distill": 3 * 24_096 + 8032, "export": 8032}
    config.pipeline.stages = ["import_hf", "export"]
    assert estimate(config).disk == {"import_hf": 11_168, "export": 11_168}  # nothing is cut


def test_full_size():
    """6 * 7,346,130,944 + 2 * 11,037,200,384 + 12*40*4096*4096 + 4*50*4096*4096 = 7.7558e10 FLOPs per token.

    8,000 * 512 * 4096 = 16,777,216,000 tokens: 1.3012e21; at 0.4 * 989e12: 3.2892e6 s = 913.7 GPU-hours.
    Per H200: 7,477,727,232 * (2 + 4 + 12/16) + 11,168,796,672 * 2 = 7.2812e10; logits 3 * 4096 * 32128 * 2 = 7.896e8;
    activations 40 * 4096 * (16384 + 128*80 + 3*11264 = 60416) * 2 = 1.9797e10: 93.4e9 bytes = 87.0 GiB.

    GRPO: weights and reference 7,477,727,232 * (4 + 4 + 12/16) = 6.5430e10;
    logits 2 * 8192 * 32128 * 2 = 1.0528e9; 64 answers of 6144 tokens in the cache, 40 * 2 * 1024 * 2 bytes each:
    6.4425e10, where nothing is kept for activations: 130.9e9 bytes = 121.9 GiB.
    """
    config = compose("bielik_minitron_7b")
    found = estimate(compose("bielik_minitron_7b", ["pipeline=compress"]))
    assert found.tokens == 16_777_216_000
    assert found.flops / found.tokens == pytest.approx(7.7558e10, rel=1e-4)
    assert found.gpu_hours == pytest.approx(913.7, rel=1e-3)
    assert sum(found.memory.values()) / 2**30 == pytest.approx(87.0, abs=0.05)
    rewarded = sum(estimate(config).memory.values()) / 2**30
    assert rewarded == pytest.approx(121.9, abs=0.05)
    assert rewarded < config.cluster.gpu_memory_gib


def test_a_target_larger_than_the_source_has_no_budget(config: Config):
    config.prune.target.num_layers = 3
    with pytest.raises(ConfigError, match=r"prune.target.num_layers: found 3, allowed: 1 to 2"):
        estimate(config)


def test_table_says_what_is_exact_and_what_is_estimated():
    config = compose("bielik_minitron_7b")
    lines = budget.table(config, estimate(config)).splitlines()
    assert lines[0].split()[:3] == ["source", "11,168,796,672", "parameters"] and "11,037,200,384" in lines[0]
    assert lines[1].split()[:3] == ["target", "7,477,727,232", "parameters"] and "7,346,130,944" in lines[1]
    assert "estimate" not in "".join(lines[:3])
    for name in ("compute", "time", "memory", "disk"):
        assert "estimate" in next(line for line in lines if line.startswith(name))
    assert "assuming 40% of 989 TFLOP/s" in "".join(lines)
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(
    "size, text", [(0, "0.0 MiB"), (2**20, "1.0 MiB"), (1.5 * 2**30, "1.5 GiB"), (2**40, "1,024.0 GiB")]
)
def test_size_text(size: float, text: str):
    assert budget.size_text(size) == text


def test_ranking_candidates_counts(config: Config):
    """2 candidates for 1 step of 40 tokens: 40 * (2 * 3 * 2736 + 4624) = 841,600 FLOPs; alone 0 steps cost nothing.

    Two trained copies of 2008 weights of 4 bytes beside two cut ones: 32,128 bytes until they are ranked. What the
    teacher leaves for them of one draw is 40 * (2 + 1/8 + 2) = 165 bytes. At another temperature it leaves nothing and
    runs twice, 40 * 4624 = 184,960 FLOPs more, unless its best ids are kept: of 5 of them 40 * 5 * 4 = 800 bytes.
    """
    alone = estimate(config)
    config.prune.search.top_k, config.teacher.samples_per_token, config.teacher.top_k = 2, 1, 5
    config.pipeline.stages = ["import_hf", "data", "score", "search", "prune", "distill"]
    assert estimate(config).flops == alone.flops and "search" not in estimate(config).disk
    config.prune.search.distill_steps = 1
    found = estimate(config)
    assert found.flops - alone.flops == 841_600
    assert found.disk["search"] == 32_128 + 165
    assert "35% of it to rank 2 candidates" in budget.table(config, found)  # 841,600 of 2,381,440
    config.distill.temperature = 2.0
    hot = estimate(config)
    assert (hot.flops - found.flops, hot.disk["search"]) == (184_960, 32_128)
    config.teacher.kind = "top_k"
    assert (estimate(config).flops, estimate(config).disk["search"]) == (found.flops, 32_128 + 800)
    config.pipeline.stages.remove("search")
    assert estimate(config).flops == alone.flops


def test_a_teacher_that_ran_before_takes_no_memory(config: Config):
    """Two thirds of the logits: 20,480 of 30,720 bytes."""
    live = estimate(config).memory
    config.pipeline.stages = ["import_hf", "data", "score", "prune", "teacher", "distill"]
    assert estimate(config).memory == live | {"teacher weights": 0, "logits": 20_480}


@pytest.mark.parametrize("n, measured", [(8, 12.1), (20, 22.3), (50, 43.4)])
def test_bytes_that_a_teacher_leaves_for_a_token(n: int, measured: float, config: Config):
    """4.55, 8.91 and 17.56 different ids of 2 bytes on SmolLM2, n / 8 and 2 bytes; 3 for ids above 65,535."""
    config.teacher.samples_per_token = n
    source = source_architecture(config)
    assert budget.teacher_bytes_per_token(config, source) == pytest.approx(measured, rel=0.01)
    more = budget.teacher_bytes_per_token(config, replace(source, vocab_size=2**16 + 1)) - measured
    assert more == pytest.approx((measured - n / 8 - 2) / 2, rel=0.05)


def test_alignment_counts(config: Config):
    """5 steps * 4 * 10 = 200 positions of the source, which nothing cuts, at 3 * 4624 = 13,872: 2,774,400; as many for
    a teacher's 4624 are 924,800. Memory is continued pre-training's, with a teacher 3240 * 4 and half the logits more.
    Epochs have no tokens yet."""
    config.pipeline.stages = ["import_hf", "chat", "sft", "preferences", "reference", "dpo", "export"]
    for own in (config.sft, config.dpo):
        own.seq_length, own.global_batch_size, own.micro_batch_size, own.recompute = 10, 4, 2, "none"
    config.sft.max_steps = 5
    found = estimate(config)
    assert (found.tokens, found.tuned, found.flops) == (0, 200, 2_774_400)
    assert sum(found.memory.values()) == 3240 * 16 + 20_480 + 16_640
    assert found.disk["sft"] == found.disk["dpo"] == 2792 * 40
    text = budget.table(config, found)
    assert "200 tokens = 5 steps * 4 sequences * 10" in text
    assert "dpo                     3 epochs: its tokens are counted once they are there, not here" in text
    config.sft.forward_kl = 0.5
    taught = estimate(config)
    assert taught.flops - found.flops == 924_800
    assert sum(taught.memory.values()) - sum(found.memory.values()) == 3240 * 4 + 10_240
    config.sft.max_steps = None
    assert estimate(config).flops == 0


def test_snapshots_and_merging_take_disk(config: Config):
    """float32, nothing cut: 2792 * 4 = 11,168 bytes a copy. SFT: checkpoints 3 * 3 copies, its result, 9 // 4 = 2
    snapshots; merging two of them writes both once more, then the mean. How many DPO leaves is not known here."""
    config.pipeline.stages = ["import_hf", "sft", "dpo", "merge", "export"]
    config.sft.max_steps, config.trainer.snapshot_every, config.merge.snapshots = 9, 4, 2
    copies = {"import_hf": 1, "sft": 12, "dpo": 10, "merge": 3, "export": 1}
    assert estimate(config).disk == {stage: 11_168 * count for stage, count in copies.items()}
