"""Every shipped YAML composes, says what it is, and gives a command that works."""

import re
import shlex
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from bielik_nemo.architecture import Architecture
from bielik_nemo.cli import COMMANDS
from bielik_nemo.composition import compose_dict
from bielik_nemo.config import Config, compose
from bielik_nemo.keys import dotted_keys, type_at
from bielik_nemo.validation.shapes import source_architecture

CONF = Path(str(files("bielik_nemo.conf")))
FILES = sorted(path for path in CONF.rglob("*.yaml") if path.parent.name != "local")
NAMES = [str(path.relative_to(CONF)) for path in FILES]
EXPERIMENTS = ["bielik_minitron_7b", "bielik_pl_minitron_7b", "smollm2", "tiny", "tiny_tokenizer"]
GROUPS = "cluster data distill dpo evaluate experiment grpo launch layout model optim parallel pipeline".split()
GROUPS += "pretrain prune sft trainer".split()
CHOSEN = [path for path in FILES if path.parent not in (CONF, CONF / "layout")]

TEACHER = (4096, 14336, 50)
PAPER = {  # hidden, FFN, layers; parameters with one embedding matrix in billions (arXiv 2603.11881 table 2)
    "001": (3072, 14336, 50, 8.28),
    "002": (4096, 9216, 50, 7.90),
    "003": (4096, 14336, 36, 7.99),
    "004": (4096, 12288, 40, 7.85),
    "005": (4096, 10240, 50, 8.52),
    "006": (4096, 11264, 44, 8.07),
    "007": (3648, 12800, 44, 7.92),
    "008": (4096, 14336, 32, 7.11),
    "009": (4096, 8192, 50, 7.26),
    "010": (4096, 11264, 40, 7.35),
}


def header(path: Path) -> list[str]:
    """Comment lines at the top, without `# `."""
    lines = path.read_text(encoding="utf-8").splitlines()
    count = next((index for index, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.lstrip("# ") for line in lines[:count]]


def target(config: Config) -> Architecture:
    sizes = config.prune.target
    return source_architecture(config).pruned_to(sizes.num_layers, sizes.hidden_size, sizes.ffn_hidden_size)


def test_groups_are_the_documented_ones():
    assert sorted(path.name for path in CONF.iterdir() if path.is_dir() and any(path.glob("*.yaml"))) in (
        GROUPS,
        sorted([*GROUPS, "local"]),
    )
    assert sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")) == EXPERIMENTS


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_begins_with_what_it_is_and_a_command_that_composes(path: Path):
    lines = header(path)
    assert len(lines) >= 2 and re.match(r"[A-Z]", next(line for line in lines if not line.startswith("@")))
    commands = [line[line.index("bielik-nemo ") :] for line in lines if "bielik-nemo " in line]
    assert commands
    for command in commands:
        _, name, *overrides = shlex.split(command)
        assert name in COMMANDS
        compose("", [each for each in overrides if "=" in each])
    group = path.relative_to(CONF).parent.name
    if group == "layout":
        experiment, cluster = (re.search(rf"{each}=(\w+)", commands[0])[1] for each in ("experiment", "cluster"))
        assert path.stem == f"{experiment}_{cluster}"
    elif group:
        assert any(f"{group}={path.stem}" in command for command in commands)


@pytest.mark.parametrize("path", CHOSEN, ids=[str(path.relative_to(CONF)) for path in CHOSEN])
def test_every_option_composes_on_its_own_and_changes_what_it_says(path: Path):
    """An option that has no effect, because an experiment or the schema overrules it, would be a lie."""
    group = path.parent.name
    composed = compose_dict("", [f"{group}={path.stem}"])
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    content.pop("defaults", None)
    prefix = "" if group == "experiment" else f"{group}."
    leaves = [key for key in dotted_keys(Config) if _given(content, key.removeprefix(prefix)) is not None]
    for key in leaves:
        wanted = _given(content, key.removeprefix(prefix)) if key.startswith(prefix) else None
        if isinstance(wanted, int | float | str | bool):
            found = composed
            for part in key.split("."):
                found = found[part]
            assert found == wanted, key


def _given(content: dict, key: str):
    for part in key.split("."):
        if not isinstance(content, dict) or part not in content:
            return None
        content = content[part]
    return content


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_run_under_their_own_name(name: str):
    config = compose(name)
    assert (config.run.name, config.run.dir) == (name, f"runs/{name}")
    assert config.evaluate.prompts and config.data.sources


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_restates_no_default(path: Path):
    """A default lives in its dataclass only; a file that repeats one would go stale. Exceptions carry a reason."""
    group = path.relative_to(CONF).parent.name
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    content.pop("defaults", None)
    plain = compose_dict()
    stated = {
        "distill/bielik_minitron.yaml": {"distill.temperature"},
        "optim/bielik_minitron.yaml": {"optim.weight_decay"},
        "experiment/bielik_minitron_7b.yaml": {"data.seq_length", "data.micro_batch_size"},
        "experiment/smollm2.yaml": {"cluster.nodes"},
        "experiment/tiny.yaml": {"cluster.nodes"},
        "experiment/tiny_tokenizer.yaml": {"cluster.nodes"},
        "parallel/single.yaml": {"parallel.tp", "parallel.pp"},
        "cluster/local.yaml": {"cluster.name"},
        "pipeline/compress.yaml": {"pipeline.stages"},
    }
    allowed = stated.get(str(path.relative_to(CONF)), set())
    for key in dotted_keys(Config):
        relative = key if group == "experiment" else key.removeprefix(f"{group}.")
        value = _given(content, relative) if relative != key or group == "experiment" else None
        if value is None or isinstance(value, dict) or key.startswith("model.shape"):
            continue
        default = plain
        for part in key.split("."):
            default = default[part]
        assert value != default or key in allowed, key
        assert type_at(Config, key) is not None


def test_full_size_parameter_counts():
    """Layer: 2*4096*4096 (Q, O) + 2*4096*1024 (K, V) + 3*4096*f + 2*4096; + 4096 (last norm) + 2*32128*4096.

    f 14336: 218,112,000 * 50 = 10,905,600,000 + 4096 + 263,192,576 = 11,168,796,672.
    f 11264: 180,363,264 * 40 =  7,214,530,560 + 4096 + 263,192,576 =  7,477,727,232.
    """
    config = compose("bielik_minitron_7b")
    assert source_architecture(config).num_parameters() == 11_168_796_672
    assert target(config).num_parameters() == 7_477_727_232


@pytest.mark.parametrize("name", PAPER)
def test_candidates_of_the_report_fit_the_experiment_and_have_its_counts(name: str):
    hidden, ffn, layers, billions = PAPER[name]
    found = target(compose("bielik_minitron_7b", [f"prune=exp_{name}"]))
    assert (found.hidden_size, found.ffn_hidden_size, found.num_layers) == (hidden, ffn, layers)
    assert abs(found.num_parameters("once") / 1e9 - billions) <= 0.01
    assert found.head_dim == 128


def test_published_recipe():
    """arXiv 2603.11881: cosine 1.5e-4 to 1.5e-5, about 8,000 steps, 2 nodes of 8 H200, less than 3 % of 1.1T tokens."""
    config = compose("bielik_minitron_7b")
    assert (config.optim.lr, config.optim.min_lr, config.trainer.max_steps) == (1.5e-4, 1.5e-5, 8000)
    assert (config.cluster.nodes, config.cluster.devices_per_node, config.data_parallel_size) == (2, 8, 16)
    assert (config.model.dtype, config.trainer.precision) == ("bfloat16", "bf16-mixed")
    tokens = config.trainer.max_steps * config.data.global_batch_size * config.data.seq_length
    assert tokens < 0.03 * 1.1e12


def test_published_way_to_another_tokenizer():
    """arXiv 2604.10799: 4 and 16 billion tokens, two boundary layers at either end; SFT, DPO-P and GRPO as before."""
    config, before = compose("bielik_pl_minitron_7b"), compose("bielik_minitron_7b")
    assert source_architecture(config) == target(before)
    batch = config.data.global_batch_size * config.data.seq_length
    assert [round(own.max_steps * batch / 1e9, 1) for own in (config.adapt, config.pretrain)] == [4.0, 16.0]
    assert config.adapt.boundary_layers == 2
    assert (config.sft, config.dpo, config.grpo) == (before.sft, before.dpo, before.grpo)
    assert config.pipeline.stages.index("pretrain") < config.pipeline.stages.index("sft")


def test_published_alignment():
    """SFT and DPO-P of arXiv 2601.11579; beta and penalty of 2505.02410 and 2505.02550; adaptive rate of 2410.18565."""
    config = compose("bielik_minitron_7b")
    sft, dpo = config.sft, config.dpo
    assert (sft.epochs, sft.seq_length, sft.packing, sft.global_batch_size) == (3, 32768, True, 64)
    assert (sft.schedule, sft.lr, sft.warmup_steps, sft.weight_decay) == ("constant", 5e-6, 100, 0.05)
    assert (dpo.epochs, dpo.seq_length, dpo.global_batch_size, dpo.schedule) == (3, 32768, 64, "constant")
    assert (dpo.lr, dpo.warmup_steps, dpo.loss, dpo.beta, dpo.penalty) == (5e-7, 50, "bielik", 0.05, 2.5)
    small = compose("", ["dpo=bielik_small"]).dpo
    assert (small.lr, small.warmup_steps, small.global_batch_size, small.max_steps) == (5e-7, 50, 64, 1800)
    assert (small.loss, small.beta, small.penalty) == ("bielik", 0.1, 2.5)
    first = compose("", ["sft=bielik_v0_1"]).sft
    assert (first.schedule, first.lr, first.min_lr, first.warmup_steps) == ("cosine", 7e-6, 6e-7, 50)
    assert (first.epochs, first.global_batch_size, first.weight_decay, first.normalization) == (3, 128, 0.05, "tokens")
    assert first.reference_tokens == first.global_batch_size * first.seq_length == 524288


def test_published_reinforcement_learning():
    """GRPO of arXiv 2601.11579; Dr. GRPO as the authors of 2503.20783 ran it."""
    own = compose("", ["grpo=bielik"]).grpo
    assert (own.schedule, own.lr, own.global_batch_size, own.kl) == ("constant", 1e-6, 128, 0.001)
    assert (own.clip_low, own.clip_high, own.scale_advantages, own.normalization) == (0.2, 0.2, True, "answer")
    verifiers = [source.rewards[0].function.rpartition(".")[2] for source in own.sources]
    assert verifiers == ["maths", "choice", "tool_call"]
    dr = compose("", ["grpo=dr_grpo"]).grpo
    assert (dr.schedule, dr.lr, dr.global_batch_size, dr.group_size, dr.temperature) == ("constant", 1e-6, 128, 8, 1)
    assert (dr.scale_advantages, dr.normalization, dr.max_answer_tokens, dr.kl) == (False, "constant", 3000, 0)


def test_built_in_shapes_are_those_of_the_checkpoints():
    """tiny: 255,424 (see tests/data/test_tiny.py); SmolLM2: 134,515,008, its demo's target 100.0M."""
    assert source_architecture(compose("tiny")).num_parameters() == 255_424
    assert target(compose("tiny")).num_parameters() == 163_136
    assert source_architecture(compose("smollm2")).num_parameters() == 134_515_008
    assert target(compose("smollm2")).num_parameters() == 100_003_392


def test_an_option_on_the_command_line_beats_the_experiments_choice():
    config = compose("bielik_minitron_7b", ["trainer=smoke", "optim.warmup_steps=2", "parallel=tp8", "prune=none"])
    assert (config.trainer.max_steps, config.parallel.tp, config.prune.target.num_layers) == (24, 8, None)


@pytest.mark.parametrize(
    ("cluster", "tp"), [("dgx_h200", 1), ("slurm_h100", 4), ("slurm_bare", 4), ("helios_gh200", 2)]
)
def test_an_experiment_has_the_layout_that_a_cluster_wants(cluster: str, tp: int):
    """Sixteen GPUs on each of them, as the report had; what the command line says of the layout comes first."""
    choice = [f"cluster={cluster}"]
    config = compose("bielik_minitron_7b", choice)
    assert (config.parallel.tp, config.world_size) == (tp, 16)
    assert compose("bielik_minitron_7b", [*choice, "parallel=tp2"]).parallel.tp == 2
    assert compose("bielik_minitron_7b", [*choice, "parallel.tp=2"]).parallel.tp == 2
    small = compose("tiny", choice)
    assert (small.world_size, small.cluster.exclusive) == (1, False)
    assert compose("tiny", [*choice, "parallel=tp2"]).world_size == 2
