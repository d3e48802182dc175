"""Memory by hand, of the model in conftest.py.

Target with its vocabulary padded from 100 to 128: 408 + 2*1024 = 2456 parameters. Source: 1192 + 2048 = 3240. A
micro-batch has 2*10 = 20 rows.
"""

import pytest

from bielik_nemo.architecture import Architecture
from bielik_nemo.budget import GIB, memory
from bielik_nemo.budget.memory import CHUNKS, GPU_RUNTIME
from bielik_nemo.config import Config, compose
from bielik_nemo.validation.shapes import source_architecture, target_architecture


@pytest.fixture
def ranks(config: Config, source: Architecture, target: Architecture):
    """Parts of every pipeline rank, of a stage."""

    def ranks(stage: str, libraries: float = 0.0) -> list[dict[str, float]]:
        work = memory.work(config, stage, source, target)
        return memory.per_rank(work, config.parallel.tp, config.parallel.pp, libraries)

    return ranks


def test_in_fp32_on_a_cpu(ranks):
    """Weights 4 bytes, gradients 4 and those of 1024 twice, Adam 8. Logits: 3 * 20 rows * 128 * 4 = 30,720, and chunks.

    Activations: 20 rows * 1 layer * (6*8 + 4*2*4 + 5*8 + 4 copies * 2 heads * 10 tokens = 200) * 4 bytes = 16,000.
    """
    assert ranks("distill", 5.0) == [
        {
            "weights": 9824,
            "gradients": 9824 + 4096,
            "optimizer": 19_648,
            "activations": 16_000,
            "logits": 30_720 + CHUNKS[False],
            "teacher": 12_960,
            "runtime": 5.0,
        }
    ]


def test_in_bf16_split_over_gpus(config: Config, source: Architecture, ranks):
    """tp 1 * pp 2 on 4 GPUs: 2 copies, each micro-batch count 4 / (2*2) = 1; the source is trained, of two layers.

    First rank: 592 + 1024 parameters: weights 2 bytes, gradients 4, Adam with its master copy 12 / 2 copies.
    Activations: one micro-batch under way, so 1 layer of 20 rows * (4*8 + 2*8 + 2*4 + 3*16 = 104) * 2. Last rank: 8
    parameters more, and 2 * 20 * 128 * 2 bytes of logits.
    """
    config.parallel.pp, config.cluster.devices_per_node = 2, 4
    config.cluster.gpu_memory_gib, config.trainer.precision = 1.0, "bf16-mixed"
    first, last = ranks("pretrain")
    assert first == {
        "weights": 2 * 1616,
        "gradients": 4 * 1616 + 2 * 1024,
        "optimizer": 6 * 1616,
        "activations": 4160,
        "logits": 0,
        "runtime": GPU_RUNTIME,
    }
    assert (last["weights"], last["logits"]) == (2 * 1624, 10_240 + CHUNKS[True])
    config.data.global_batch_size = 8  # two micro-batches: the first rank holds both, the last goes back at once
    assert [rank["activations"] for rank in ranks("pretrain")] == [8320, 4160]
    assert memory.fullest(ranks("pretrain")) == ranks("pretrain")[1]


def test_tensor_parallelism_divides_all_but_norms_and_residual(config: Config, ranks):
    """tp 2 (of 2 groups, so K and V are 8*8 each): target 4*64 + 3*8*8 = 448 in a layer, its half 224; norms 24 whole.

    Weights 224 + 24 + 1024 = 1272. Activations (6*8 + (4*8 + 5*8 + 80)/2 = 124) * 20 * 4.
    """
    config.model.shape.num_query_groups, config.parallel.tp = 2, 2
    source = source_architecture(config)
    (found,) = memory.per_rank(memory.work(config, "pretrain", source, source), 2, 1)
    assert found["logits"] == 2 * 20 * 64 * 4 + CHUNKS[False]
    cut = target_architecture(config, source)
    (found,) = memory.per_rank(memory.work(config, "dpo", source, cut), 2, 1)
    assert found["weights"] == 4 * 1272
    config.dpo.seq_length, config.dpo.micro_batch_size, config.dpo.recompute = 10, 2, "none"
    (found,) = memory.per_rank(memory.work(config, "dpo", source, cut), 2, 1)
    assert found["activations"] == 124 * 20 * 4


def test_activations_of_a_split_sequence_and_recomputed_ones(config: Config, ranks):
    """On GPUs: 4*8 + 2*8 + 2*4 + 3*8 = 80 elements of a row. Computed again: the layer's input, 8, and one layer, 80.

    Without the scores a CPU keeps 120 of 200, and once 80. cp 2 halves the rows.
    """
    config.trainer.recompute = "selective"
    assert ranks("distill")[0]["activations"] == (120 + 80) * 20 * 4
    config.cluster.gpu_memory_gib = 1.0
    assert ranks("distill")[0]["activations"] == 80 * 20 * 4
    config.trainer.recompute = "full"
    assert ranks("distill")[0]["activations"] == 88 * 20 * 4
    config.trainer.recompute, config.parallel.cp = "none", 2
    assert ranks("distill")[0]["activations"] == 80 * 10 * 4


def test_what_runs_beside_the_model(config: Config, ranks):
    """A teacher that ran before takes nothing; every part of the loss has its gradient of the logits, 10,240 bytes."""
    config.distill.weights.cross_entropy = 0.5
    assert ranks("distill")[0]["logits"] == 4 * 10_240 + CHUNKS[False]
    config.pipeline.stages = ["import_hf", "data", "score", "prune", "teacher", "distill"]
    alone = ranks("distill")[0]
    assert "teacher" not in alone and alone["logits"] == 3 * 10_240 + CHUNKS[False]
    config.sft.seq_length, config.sft.micro_batch_size, config.sft.recompute = 10, 2, "none"
    assert "teacher" not in ranks("sft")[0]
    config.sft.forward_kl = 0.1
    assert ranks("sft")[0]["teacher"] == 12_960


def test_forward_only_takes_weights_and_one_layer(config: Config, ranks):
    """In model.dtype, which is what is loaded: 3240 * 2 bytes; 1 layer's 20 rows * 240 and logits 20 * 128, of 2."""
    config.model.dtype = "bfloat16"
    (found,) = ranks("score")
    assert (found["weights"], found["gradients"], found["optimizer"]) == (6480, 0, 0)
    assert found["activations"] == 20 * 240 * 2 and found["logits"] == 20 * 128 * 2 + CHUNKS[False]
    assert memory.work(config, "data", *(source_architecture(config),) * 2) is None


def test_adapters_are_all_that_is_trained(config: Config, ranks):
    """Rank 2 on linear_proj of one layer: 2 * (8 + 8) = 32 parameters beside 2456 frozen ones."""
    config.sft.lora.rank, config.sft.lora.targets = 2, ["linear_proj"]
    (found,) = ranks("sft")
    assert (found["weights"], found["gradients"], found["optimizer"]) == ((2456 + 32) * 4, 128, 256)


def test_sampling_takes_a_cache_where_activations_are_not(config: Config, ranks):
    """3 answers of 4 + 6 tokens of one layer: 2 * 1 group * 4 * 4 bytes each: 960; a batch of 1 row keeps less."""
    own = config.grpo
    own.rollout_batch_size, own.max_prompt_tokens, own.max_answer_tokens = 3, 4, 6
    own.seq_length, own.micro_batch_size, own.recompute = 1, 1, "none"
    (found,) = ranks("grpo")
    assert found["activations"] == (48 + 32 + 40 + 8) * 4
    assert (found["reference"], found["KV cache"]) == (9824, 960 - 512)
    own.kl = 0.0
    assert "reference" not in ranks("grpo")[0]


def test_full_size():
    """Per H200: 7,477,727,232 * (2 + 4 + 12/16) + 11,168,796,672 * 2 = 7.2812e10; logits 3 * 4096 * 32128 * 2 = 7.896e8
    and 0.336e9 of chunks; activations 40 * 4096 * (16384 + 128*80 + 3*11264 = 60416) * 2 = 1.9797e10; 3 GiB; of
    the vocabulary's gradient 32128 * 4096 * 2: 90.5 GiB.

    GRPO: weights and reference 7,477,727,232 * (4 + 4 + 12/16) = 6.5430e10; logits 2 * 8192 * 32128 * 2 = 1.0528e9; 64
    answers of 6144 tokens in the cache, 40 * 2 * 1024 * 2 bytes each: 6.4425e10, where nothing is kept for activations:
    with chunks, 3 GiB and that gradient 125.5 GiB.
    """
    config = compose("bielik_minitron_7b", ["cluster=dgx_h200"])
    source = source_architecture(config)
    shapes = source, target_architecture(config, source)
    sums = {
        stage: sum(memory.fullest(memory.per_rank(memory.work(config, stage, *shapes), 1, 1)).values()) / GIB
        for stage in ("distill", "grpo")
    }
    assert sums == {"distill": pytest.approx(90.54, abs=0.01), "grpo": pytest.approx(125.47, abs=0.01)}
