import json
import resource
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from bielik_nemo import preflight
from bielik_nemo.checkpoints import TOKENIZER_FILES
from bielik_nemo.config import Config, compose
from bielik_nemo.config_align import ChatSource, MergeModel, PreferenceSource
from bielik_nemo.config_grpo import RewardTerm, TaskSource
from bielik_nemo.config_outcome import Compared, Point
from bielik_nemo.config_prune import BlendSource
from bielik_nemo.data import builtin_chat, text
from bielik_nemo.errors import ConfigError
from bielik_nemo.validation.shapes import source_architecture

MATHS = "bielik_nemo.align.rewards.maths"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A Hugging Face directory of the tiny shape: real config and tokenizer layout, weights that nobody reads."""
    directory = tmp_path / "my model"
    directory.mkdir()
    shape = source_architecture(compose("tiny"))
    (directory / "config.json").write_text(json.dumps(shape.to_hf()))
    (directory / "model.safetensors").write_bytes(b"not read")
    vocabulary = {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 255}},
        "added_tokens": [{"id": 262, "content": "</s>"}],
    }
    (directory / "tokenizer.json").write_text(json.dumps(vocabulary))
    return directory


@pytest.fixture
def config(checkpoint: Path, tmp_path: Path) -> Config:
    (tmp_path / "texts" / "deeper").mkdir(parents=True)
    (tmp_path / "texts" / "deeper" / "a.jsonl").write_text('{"text": "a"}\n')
    overrides = [
        f"model.source='{checkpoint}'",
        f"run.dir='{tmp_path}/runs/x'",
        f"data.sources=[{{path:'{tmp_path}/texts'}}]",
    ]
    return compose("tiny", ["pipeline=compress", *overrides])


def of(config: Config, level: str = "error", stages: list[str] | None = None) -> list[str]:
    return [finding.message for finding in preflight.findings(config, stages) if finding.level == level]


def test_a_good_run_has_no_findings(config: Config):
    assert preflight.findings(config) == []
    preflight.require(config, config.pipeline.stages)
    config.model.shape = None  # taken from the checkpoint
    assert preflight.findings(config) == []
    assert preflight.architecture(config).num_parameters() == 255_424


@pytest.mark.parametrize("name", ["tiny", "smollm2"])
def test_built_in_experiments_are_ready_here(name: str, tmp_path: Path):
    config = compose(name, [f"run.dir='{tmp_path}'"])
    assert preflight.findings(config, config.pipeline.stages) == []


def test_full_size_checks_on_a_machine_that_has_none_of_it(tmp_path: Path):
    config = compose("bielik_minitron_7b", [f"model.source={tmp_path}/none", f"data.sources=[{{path:{tmp_path}/no}}]"])
    assert of(config) == []
    warnings = of(config, "warning")
    assert warnings[0].startswith("model.source: no such directory")
    assert warnings[1].startswith("data.sources[0].path: no such file")
    assert preflight.costs(config).target.num_parameters() == 7_477_727_232
    errors = of(config, "error", config.pipeline.stages)  # but it cannot run here
    assert [line.split(":")[0] for line in errors[:2]] == ["model.source", "data.sources[0].path"]


def test_formats_whose_runtime_is_not_here(config: Config, monkeypatch: pytest.MonkeyPatch):
    """Also one that does not fit the model, whose FFN will have 128: 64 = hidden_size is the first that is no 256."""
    config.pipeline.stages.append("quantize")
    config.quantize.formats = ["gguf:q6_k", "nvfp4"]
    config.quantize.require_runtime, config.quantize.fallback = True, False
    monkeypatch.setattr(preflight.quantization, "find_spec", lambda name: None)
    found = of(config)
    assert [line[:44] for line in found] == [
        "quantize.formats[0]: gguf:q6_k: llama_cpp is",
        "quantize.formats[1]: found nvfp4, whose runt",
        "quantize.formats[0]: found gguf:q6_k, whose ",
    ]
    assert 'pip install "bielik_nemo[gguf]"' in found[0] and "hidden_size=64" in found[2]
    assert of(config, stages=["export"]) == []


def test_all_problems_at_once(config: Config, checkpoint: Path, tmp_path: Path):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "tokenizer.json").unlink()
    config.model.shape.num_layers = 5
    config.data.sources[0].path = str(tmp_path / "nowhere")
    (tmp_path / "runs").write_text("a file")
    found = preflight.findings(config)
    keys = ["model.shape.num_layers", "model.source", "model.source", "data.sources[0].path", "run.dir"]
    assert [(finding.level, finding.key) for finding in found] == [("error", key) for key in keys]
    assert found[-1].message.endswith(f"allowed: a directory, but {tmp_path}/runs is a file")
    for finding in found:
        assert finding.message.startswith(f"{finding.key}: ") and "\n" not in finding.message
    with pytest.raises(ConfigError) as caught:
        preflight.require(config, config.pipeline.stages)
    assert str(caught.value).splitlines() == [finding.message for finding in found]


def test_what_is_impossible_in_itself_comes_first(config: Config):
    config.optim.lr, config.model.source = 0.0, "/nowhere"
    assert of(config) == ["optim.lr: found 0.0, allowed: a positive number"]
    assert preflight.costs(config) is None


def test_without_a_shape_a_missing_source_is_an_error(config: Config):
    config.model.source, config.model.shape = "/nowhere", None
    assert of(config)[0].startswith("model.source: no such directory: '/nowhere'")
    config.model.source = "builtin:smollm"
    assert "did you mean builtin:smollm2?" in of(config)[0]
    config.model.source = ""
    assert "model.source" in of(config)[0]


def test_only_the_stages_that_read_files_need_them(config: Config):
    config.model.source, config.data.sources = "/nowhere", []
    assert of(config, "error", ["prune", "distill"]) == []
    assert len(of(config, "error", ["import_hf"])) == len(of(config, "error", ["data"])) == 1


def test_shape_and_checkpoint_must_agree(config: Config, checkpoint: Path):
    config.model.shape.ffn_hidden_size = 192
    config.model.shape.rotary_base = 10000.0
    where = f"as in {checkpoint}/config.json, or model.shape=null"
    assert of(config) == [
        f"model.shape.ffn_hidden_size: found 192, allowed: 160, {where}",
        f"model.shape.rotary_base: found 10000.0, allowed: 1000000.0, {where}",
    ]


def test_target_and_layout_are_checked_against_the_checkpoint(config: Config):
    """The checkpoint has 4 layers and 2 groups; no shape is given, so only the file says so."""
    config.model.shape = None
    config.prune.target.num_layers = 5
    assert of(config) == ["prune.target.num_layers: found 5, allowed: 1 to 4"]
    config.prune.target.num_layers = 3
    config.parallel.tp, config.data.seq_length = 4, 2048
    found = of(config)
    assert [line.split(";")[0] for line in found] == [
        "parallel.tp=4: does not divide num_query_groups=2",
        "parallel.tp=4: does not divide num_query_groups=2",
        "data.seq_length: found 2048, allowed: 1 to 1024, the model's context",
    ]


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "is not valid JSON"),
        ('{"model_type": "gpt2"}', "model_type: found 'gpt2', allowed: llama, mistral, qwen2"),
        (None, "cannot be read"),
    ],
)
def test_config_json_of_the_checkpoint(config: Config, checkpoint: Path, content: str | None, message: str):
    (checkpoint / "config.json").unlink()
    if content is not None:
        (checkpoint / "config.json").write_text(content)
    (found,) = of(config)
    assert found.startswith(f"model.source: {checkpoint}/config.json") and message in found


def test_missing_shards_are_counted(config: Config, checkpoint: Path):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert of(config) == [f"model.source: {checkpoint}: 2 of 3 shards are missing, first model-2.safetensors"]
    (checkpoint / "model.safetensors.index.json").write_text("[]")
    assert "no index of shards" in of(config)[0]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"model": {"vocab": {"a": 263}}}, "found token id 263, allowed: below the model's vocab_size=263"),
        ({"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 300}]}, "found token id 300"),
        ({"model": {"vocab": [["a", -1.0]] * 264}}, "found token id 263"),
        ({"model": {}}, "no tokenizer can be read from it"),
        ([], "no tokenizer can be read from it"),
    ],
)
def test_wrong_tokenizer(config: Config, checkpoint: Path, content: object, message: str):
    (checkpoint / "tokenizer.json").write_text(json.dumps(content))
    (found,) = of(config)
    assert found.startswith(f"model.source: {checkpoint}/tokenizer.json") and message in found
    (checkpoint / "tokenizer.json").write_text(json.dumps({"model": {"vocab": [["a", -1.0]] * 263}}))  # just fits
    assert of(config) == []


def test_texts(config: Config, tmp_path: Path):
    def message(path: Path) -> str:
        config.data.sources[0].path = str(path)
        (found,) = of(config)
        assert found.startswith("data.sources[0].path: ")
        return found

    (tmp_path / "empty").mkdir()
    (tmp_path / "a.pdf").write_text("a")
    assert "no such file or directory" in message(tmp_path / "none.txt")
    assert "found no text" in message(tmp_path / "empty")
    assert "found no text" in message(tmp_path / "a.pdf")
    config.data.sources = []
    assert of(config)[0].startswith("data.sources: found none")
    assert set(preflight.TEXT_SUFFIXES) == set(text._READERS)


def test_texts_of_the_calibration_blend(config: Config, tmp_path: Path):
    config.prune.calibration.sources = [BlendSource(str(tmp_path / "texts")), BlendSource("builtin:package-docs")]
    assert of(config) == []
    (tmp_path / "empty").mkdir()
    config.prune.calibration.sources += [BlendSource(str(tmp_path / name)) for name in ("none.txt", "empty")]
    found = of(config)
    assert [line.split(": ")[:2] for line in found] == [
        ["prune.calibration.sources[2].path", "no such file or directory"],
        ["prune.calibration.sources[3].path", f"found no text in '{tmp_path}/empty', allowed"],
    ]
    assert len(of(config, "error", ["score"])) == 2
    assert of(config, "error", ["import_hf", "data", "prune", "distill"]) == []


def test_sources_of_conversations_and_preferences(config: Config, tmp_path: Path):
    """They are read by stages of their own, and as .jsonl alone; a built-in set of conversations may have no pairs."""
    stages = ["import_hf", "chat", "preferences"]
    config.sft.sources = config.dpo.sources = []
    assert [line.split(":")[0] for line in of(config, "error", stages)] == ["sft.sources", "dpo.sources"]
    (tmp_path / "a.txt").write_text("a")
    paths = [str(tmp_path / "texts"), str(tmp_path / "a.txt"), str(tmp_path / "none"), "builtin:evals-polish"]
    config.sft.sources = [ChatSource(path) for path in paths]
    config.dpo.sources = [PreferenceSource(paths[0]), PreferenceSource(paths[3])]
    found = of(config, "error", stages)
    assert [line.split(";")[0].split(", allowed")[0] for line in found] == [
        f"sft.sources[2].path: no such file or directory: '{tmp_path}/none'",
        "dpo.sources[1].path: no such file or directory: 'builtin:evals-polish'",
        f"sft.sources[1].path: found no text in '{tmp_path}/a.txt'",
    ]
    assert "allowed: a .jsonl file, a directory of them, or builtin:polish-corrections" in found[1]
    assert len(of(config, "error", ["preferences"])) == 1
    assert of(config, "error", ["import_hf", "data"]) == []


def test_sources_of_tasks(config: Config, tmp_path: Path):
    config.grpo.sources = []
    (found,) = of(config, "error", ["tasks"])
    assert found.startswith("grpo.sources: found none, allowed: a list of paths, such as 'grpo.sources=[{path:builtin:")
    paths = ["builtin:drills", "builtin:drill", "builtin:polish-corrections", str(tmp_path / "texts")]
    config.grpo.sources = [TaskSource(path, rewards=[RewardTerm(MATHS)]) for path in paths]
    found = of(config, "error", ["import_hf", "tasks"])
    assert [line.split(";")[0] for line in found] == [
        "grpo.sources[1].path: no such file or directory: 'builtin:drill'",
        "grpo.sources[2].path: no such file or directory: 'builtin:polish-corrections'",
    ]
    assert "allowed: a .jsonl file, a directory of them, or builtin:drills or builtin:arithmetic" in found[0]
    assert of(config, "error", ["import_hf", "data"]) == []


def test_rewards_are_found_and_have_their_options(config: Config):
    """By importing them, in the stages that need them; where the run is for another machine, they may be there."""
    terms = [RewardTerm(MATHS, options={"limit": 1.0}), RewardTerm("my_rewards.maths"), RewardTerm(f"{MATHS}.NONE")]
    config.grpo.sources = [TaskSource("builtin:drills", rewards=terms)]
    expected = [
        f"grpo.sources[0].rewards[0].options.limit: found an option that {MATHS} does not have, allowed: none",
        "grpo.sources[0].rewards[1].function: found 'my_rewards.maths', which cannot be imported: ModuleNotFoundError: "
        "No module named 'my_rewards'",
        f"grpo.sources[0].rewards[2].function: found '{MATHS}.NONE', where there is no function, "
        "allowed: the dotted path of one",
    ]
    assert of(config, "error", ["tasks"]) == of(config, "error", ["grpo"]) == expected
    assert of(config, "error", ["import_hf", "data"]) == []
    elsewhere = compose("tiny", ["grpo=tiny", "pipeline.stages=[import_hf,tasks,grpo]", "model.source=/none"])
    elsewhere.grpo.sources = config.grpo.sources
    assert set(expected) <= set(of(elsewhere, "warning")), of(elsewhere)


def test_a_built_in_set_whose_package_is_not_installed(config: Config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(builtin_chat, "CORRECTIONS_FILE", ("lingotweaker-data-xx", "0.1.5", "a.xml", ""))
    config.sft.sources, config.dpo.sources = [], [PreferenceSource("builtin:polish-corrections")]
    (found,) = of(config, "error", ["preferences"])
    assert found.startswith(
        "dpo.sources[0].path: builtin:polish-corrections needs the Python package lingotweaker-data-xx,"
    )


def test_a_source_that_would_give_no_sample(config: Config, tmp_path: Path):
    """10 samples at 30:1 are 10 and 0."""
    config.prune.calibration.samples = 10
    texts = str(tmp_path / "texts")
    config.prune.calibration.sources = [BlendSource(texts, weight=30), BlendSource(texts)]
    assert of(config) == [
        "prune.calibration.sources[1].weight: found 1.0, allowed: enough for one of prune.calibration.samples=10; "
        "the sum of the weights is 31"
    ]
    assert of(config, "error", ["import_hf", "data", "prune"]) == []


def test_run_directory_that_cannot_be_written(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    assert of(config) == [
        f"run.dir: found '{tmp_path}/runs/x', allowed: a directory that can be written; {tmp_path} cannot"
    ]


def test_disk(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """tiny, float32: 4 * 255,424 + 4 * 163,136 * (1 + 1 + 1) + 3 * 12 * 163,136 = 8,852,224 bytes = 8.4 MiB.

    Three checkpoints: the two of trainer.keep_last, and the one that is being written.
    """

    def free(size: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(size, 0, size))

    free(8_852_224)
    assert of(config) == []
    free(8_852_223)
    assert of(config) == [f"run.dir: found 8.4 MiB free at {tmp_path}, allowed: at least about 8.4 MiB (estimate)"]
    (tmp_path / "runs" / "x" / "import_hf").mkdir(parents=True)  # what is finished needs no more room
    (tmp_path / "runs" / "x" / "import_hf" / "manifest.json").write_text("{}")
    assert of(config) == []


def test_oddities(config: Config):
    config.parallel.tp, config.cluster.nodes, config.cluster.devices_per_node = 2, 2, 1
    config.prune.target = compose().prune.target
    assert [line.split(":")[0] for line in of(config, "warning")] == ["parallel.tp", "prune.target"]
    assert of(config) == []


def test_rollouts_by_vllm_need_it(tmp_path: Path):
    config = compose("tiny", [f"run.dir='{tmp_path}'", "grpo.rollouts=vllm"])
    want = "grpo.rollouts: found vllm, which is not installed, allowed: megatron"
    assert (want in [each.message for each in preflight.findings(config)]) == (find_spec("vllm") is None)


def test_is_quick_offline_and_without_torch():
    code = (
        "import sys, socket\n"
        "def refuse(*args): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from bielik_nemo import preflight\n"
        "from bielik_nemo.config import compose\n"
        "for name in ('tiny', 'bielik_minitron_7b'): preflight.findings(compose(name))\n"
        "print([m for m in ('torch', 'nemo', 'megatron', 'transformers') if m in sys.modules])"
    )
    before = _seconds_of_children()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert _seconds_of_children() - before < 4  # rewards bring sympy


def _seconds_of_children() -> float:
    """Of processors: on a busy machine the clock says nothing."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def searched(*overrides: str) -> Config:
    """The full size with a search for its shape, on a machine without checkpoint and text."""
    return compose("bielik_minitron_7b", ["prune=auto", *overrides])


def test_the_budget_is_that_of_the_first_candidate():
    """7.35B with one matrix: first 50 layers, hidden 3328, FFN 11776, 24 heads, 7,348,986,112 + 32,128 * 3,328."""
    config = searched("prune.search.max_parameters=7.35e9", "prune.search.embeddings=once")
    assert of(config) == []
    first, second, *_ = preflight.candidates(config).candidates
    assert (first.name, second.name) == ("l50-h3328-f11776-a24", "l40-h4096-f11264-a32")
    assert preflight.costs(config).target.num_parameters() == first.parameters == 7_455_908_096
    assert not any("nothing is pruned" in line for line in of(config, "warning"))


def test_a_search_without_a_budget_is_refused_when_it_is_composed():
    with pytest.raises(ConfigError) as caught:
        searched()
    assert str(caught.value) == (
        "prune.search: found no budget, allowed: one of "
        "prune.search.max_parameters, prune.search.max_memory_gib, prune.search.max_latency_ms"
    )
    with pytest.raises(ConfigError, match=r"^prune\.search\.max_latency_ms: found 5, .*memory_bandwidth_gb_s or"):
        searched("prune.search.max_latency_ms=5")
    with pytest.raises(ConfigError, match=r"^prune\.search\.distill_steps: found 9, allowed: 0 with prune\.streaming"):
        searched("prune.search.max_parameters=8e9", "prune.search.distill_steps=9", "prune.streaming=true")


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["max_parameters=1e9"], "prune.search.max_parameters=1,000,000,000: found no shape"),
        (["max_parameters=8e9", "num_layers.min=51"], "prune.search.num_layers: found no size from 51 to 50"),
        (["max_latency_ms=5", "latency_table=none.json"], "prune.search.latency_table: none.json: No such file"),
    ],
)
def test_a_search_that_finds_nothing_is_told_before_it_starts(overrides: list[str], message: str):
    (error,) = of(searched(*(f"prune.search.{each}" for each in overrides)))
    assert error.startswith(message)


def test_candidates_that_cannot_be_split_are_told():
    """Five pipeline stages cannot share 42, 46 or 48 layers evenly."""
    layout = ["parallel.pp=5", "cluster.devices_per_node=5"]
    config = searched("prune.search.max_parameters=7.35e9", "prune.search.embeddings=once", *layout)
    assert of(config) == []  # the first alone is taken, with 50 layers
    config.prune.search.distill_steps = 100
    assert [line.rpartition("candidate ")[2] for line in of(config)] == [
        "l48-h3584-f11264-a24)",
        "l42-h3328-f13824-a32)",
        "l46-h3072-f14336-a24)",
    ]  # and not the other three, of 50 and 40


def test_oddities_of_a_search(config: Config):
    def odd() -> list[str]:
        return [line for line in of(config, "warning") if line.startswith("prune.search")]

    config.prune.target = type(config.prune.target)()
    config.prune.search.max_parameters = 1e6
    assert odd() == ["prune.search.max_parameters: not used, since pipeline.stages has no search (prune=auto has one)"]
    config.pipeline.stages.insert(config.pipeline.stages.index("prune"), "search")
    config.prune.search.tolerance = 0.9
    assert odd() == ["prune.search.max_parameters: found 1,000,000, which the source model does not exceed"]
    config.prune.search.max_parameters, config.prune.search.tolerance = 2.3e5, 0.2
    assert odd() == []
    config.prune.search.distill_steps, config.prune.search.top_k = 100, 1
    assert [line.split(":")[0] for line in odd()] == ["prune.search.distill_steps"] * 2
    config.prune.search.top_k, config.prune.search.distill_steps = 2, 4
    config.pipeline.stages.remove("distill")
    assert len(odd()) == 1 and "does not distil" in odd()[0]


def test_scores_of_another_run_must_be_there(config: Config, tmp_path: Path):
    config.prune.importance.scores = str(tmp_path / "scores.safetensors")
    (error,) = of(config)
    assert error.startswith(f"prune.importance.scores: no such file: '{tmp_path}/scores.safetensors'; allowed: ")
    assert of(config, "error", ["import_hf", "data"]) == []  # which do not read it
    (tmp_path / "scores.safetensors").mkdir()
    assert len(of(config)) == 1
    (tmp_path / "scores.safetensors").rmdir()
    (tmp_path / "scores.safetensors").touch()
    assert of(config) == []


def test_a_release_says_its_licence_also_when_it_is_run_alone(config: Config):
    config.release.name, config.release.licence = "Small-1", ""
    assert of(config) == []
    (found,) = of(config, "error", ["release"])
    assert found.startswith("release.licence: found '', allowed: an SPDX identifier such as Apache-2.0")
    config.release.licence = "MIT"
    assert of(config, "error", ["release"]) == []


def test_models_to_be_merged(config: Config, checkpoint: Path, tmp_path: Path):
    """One that is not there, one that is nothing, a pickle, another shape, and two that are good."""
    other, pickled, megatron = tmp_path / "other", tmp_path / "pickled", tmp_path / "megatron"
    for path in (other, pickled):
        path.mkdir()
    (megatron / "weights").mkdir(parents=True)
    (megatron / "weights" / ".metadata").write_bytes(b"")
    config.merge.models = [
        MergeModel(str(path))
        for path in (tmp_path / "nowhere", tmp_path / "texts", pickled, other, checkpoint, megatron)
    ]
    shape = json.loads((checkpoint / "config.json").read_text())
    (pickled / "config.json").write_text(json.dumps(shape))
    (pickled / "pytorch_model.bin").write_bytes(b"")
    (other / "config.json").write_text(json.dumps(shape | {"intermediate_size": 96}))
    (other / "model.safetensors").write_bytes(b"not read")
    assert of(config) == []  # nothing is merged
    config.pipeline.stages = ["import_hf", "data", "merge", "export"]
    errors = of(config, "error", config.pipeline.stages)
    assert [line.partition(" (")[0] for line in errors] == [
        f"merge.models[0].path: no such directory: '{tmp_path}/nowhere'; allowed: a Hugging Face directory",
        f"merge.models[1].path: found '{tmp_path}/texts', allowed: a Hugging Face directory",
        f"merge.models[2].path: {pickled}: found no weights, allowed: *.safetensors files",
        f"merge.models[3].path: found '{other}', allowed: a model of the same shape: ffn_hidden_size 96, not 160",
    ]
    config.merge.models = []
    assert "nothing to merge" in of(config, "error", ["merge"])[0]


def test_models_to_be_measured(config: Config, checkpoint: Path, tmp_path: Path):
    """One that is not there, one that is nothing, one without weights and tokenizer, a stage, and one that is good."""
    bare, stage = tmp_path / "bare", tmp_path / "stage"
    for path in (bare, stage):
        path.mkdir()
    (bare / "config.json").write_text((checkpoint / "config.json").read_text())
    for name in ("architecture.json", "manifest.json"):
        (stage / name).write_text("{}")
    places = (tmp_path / "nowhere", tmp_path / "texts", bare, stage, checkpoint)
    config.evaluate.models = [Compared(f"model{index}", str(path)) for index, path in enumerate(places)]
    config.pipeline.stages = ["import_hf", "data"]
    assert of(config) == []  # nothing is measured
    config.pipeline.stages = ["import_hf", "data", "evaluate"]
    errors = of(config, "error", config.pipeline.stages)
    assert [line.partition(" (")[0] for line in errors] == [
        f"evaluate.models[0].path: no such directory: '{tmp_path}/nowhere'; allowed: a Hugging Face directory",
        f"evaluate.models[1].path: found '{tmp_path}/texts', allowed: a Hugging Face directory",
        f"evaluate.models[2].path: {bare}: found no weights, allowed: *.safetensors files",
        f"evaluate.models[2].path: {bare}: found no tokenizer, allowed: one of {', '.join(TOKENIZER_FILES)}",
    ]


def test_a_model_is_merged_with_what_the_pipeline_makes(config: Config, checkpoint: Path):
    """A model of the source's shape does not go with the pruned one."""
    config.merge.models = [MergeModel(str(checkpoint))]
    config.pipeline.stages = ["import_hf", "data", "score", "prune", "merge"]
    (line,) = of(config, "error", config.pipeline.stages)
    assert "allowed: a model of the same shape: num_layers 4, not 3" in line


def test_loads_beyond_the_context_and_an_engine_that_is_not_here(config: Config):
    config.benchmark.points = [Point(), Point(input_tokens=1000, output_tokens=25)]
    config.benchmark.engine = "vllm"
    assert of(config) == []  # the pipeline has no benchmark
    beyond = "benchmark.points[1]: found 1025 tokens together, allowed: 1,024, the context of model.source"
    absent = "benchmark.engine: found vllm, which is not installed, allowed: transformers"
    assert of(config, stages=["benchmark"]) == [*([] if find_spec("vllm") else [absent]), beyond]
    config.model.source = "nowhere"
    assert of(config, stages=["benchmark"])[0].startswith("model.source: no such directory: 'nowhere'")


def test_benchmarks_need_their_documents(config: Config, tmp_path: Path):
    pytest.importorskip("lm_eval", reason='needs lm-evaluation-harness: pip install "bielik_nemo[measure]"')
    settings = config.evaluate.harness
    settings.tasks, settings.data_dir = ["bielik_8tags"], str(tmp_path)
    first, second = of(config)
    assert first.startswith(f"evaluate.harness.data_dir: task bielik_8tags: found no {tmp_path}/8tags/test.jsonl")
    assert first.endswith("the split test of sdadas/8tags, a document a line with label, sentence")
    assert "8tags/train.jsonl" in second
    assert of(config, stages=["export"]) == []
    settings.shots = 0  # no examples
    assert len(of(config)) == 1


def test_what_another_tokenizer_needs(config: Config, checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    config.pipeline.stages = ["import_hf", "swap_tokenizer", "data", "adapt"]
    config.swap_tokenizer.tokenizer = "/nowhere"
    assert of(config) == [
        "swap_tokenizer.tokenizer: found no tokenizer in '/nowhere', allowed: a directory with one of tokenizer.json, "
        "tokenizer.model, vocab.json, or builtin:smollm2 or builtin:tiny or builtin:tiny_bpe"
    ]
    config.swap_tokenizer.tokenizer = str(checkpoint)  # its largest id is 262
    assert of(config) == [] and preflight.architecture(config).vocab_size == 263
    monkeypatch.setattr(preflight, "find_spec", lambda name: None if name == "entmax" else object())
    assert of(config) == ['swap_tokenizer: needs entmax, not installed here; pip install "bielik_nemo[tokenizer]"']
