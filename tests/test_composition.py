from pathlib import Path

import pytest

from bielik_nemo.composition import compose_dict, expand_sweep, to_yaml
from bielik_nemo.config import compose
from bielik_nemo.errors import ConfigError

# An override, and all that its one line of error must hold: key, what was found, what is allowed, the nearest name.
MISTAKES = {
    "optim.lrr=1": ["optim.lrr: unknown key", "warmup_steps", "did you mean optim.lr?"],
    "lr=1": ["lr: unknown key", "or optim.lr?"],
    "name=x": ["did you mean run.name or cluster.name or release.name?"],
    "runs.dir=x": ["did you mean run.dir?"],
    "prune.target.layers=2": ["num_attention_heads", "did you mean prune.target.num_layers?"],
    "modle=tiny": ["modle: unknown key", "did you mean model?"],
    "foo.bar=1": ["foo.bar: unknown key"],
    "optim.lr.x=1": ["optim.lr.x: unknown key", "did you mean optim.lr?"],
    "model=smolm2": [
        "model: found 'smolm2'",
        "bielik_11b_v3, bielik_minitron_7b, smollm2, tiny",
        "did you mean smollm2?",
    ],
    "experiment=tinny": ["experiment: found 'tinny'", "did you mean tiny?"],
    "experiment=null": ["experiment: found null", "tiny"],
    "optim={lr:1}": ["optim: found {'lr': 1}"],
    "model@elsewhere=tiny": ["model: found 'model@elsewhere=tiny'"],
    "optim.lr=fast": ["optim.lr: found 'fast'", "a number"],
    "optim.lr=": ["optim.lr: found ''", "a number"],
    "optim.lr=null": ["optim.lr: found null", "a number"],
    "optim.lr=[1,2]": ["optim.lr: found [1, 2]", "a number"],
    "optim.lr={a:1}": ["optim.lr: found {'a': 1}", "a number"],
    "optim.lr=1,2": ["optim.lr: found '1,2'", "--multirun"],
    "trainer.max_steps=1.5": ["trainer.max_steps: found 1.5", "an integer"],
    "trainer.max_steps=true": ["trainer.max_steps: found True", "an integer"],
    "model.shape.num_layers=x": ["model.shape", "null"],
    "run=5": ["run: found 5", "the keys name, dir, seed"],
    "run.name=[a]": ["run.name: found ['a']", "text"],
    "run.name=???": ["run.name: found '???'", "text"],
    "run.name=${nope}": ["run.name: cannot be resolved", "'nope'"],
    "run.name=${run.dir}": ["run.name: cannot be resolved"],
    "run.name=${oc.env:BIELIK_NOT_SET}": ["run.name: cannot be resolved", "BIELIK_NOT_SET"],
    "data.sources=x": ["data.sources: found 'x'", "a list"],
    "data.sources=[x]": ["data.sources[0]: found 'x'", "the keys path, text_key"],
    "data.sources=[{pat:x}]": ["data.sources: found 'pat'", "path, text_key"],
    "prune.calibration.sources=[{path:x,weight:y}]": ["prune.calibration.sources: found weight='y' in its", "text_key"],
    "data.sources.7.path=x": ["data.sources[7]: found no such item"],
    "data.sources.0.pat=x": ["data.sources.0.pat: unknown key", "did you mean data.sources.0.path?"],
    "evaluate.prompts=[a,null]": ["evaluate.prompts[1]: found null", "text"],
    "+optim.new=1": ["optim.new: unknown key"],
    "++optim.new=1": ["optim.new: unknown key"],
    "+optim.lr=1": ["optim.lr: found '+optim.lr=1'", "optim.lr=value"],
    "~optim.lr": ["optim.lr: found '~optim.lr'"],
    "+experiment=tiny": ["experiment: found '+experiment=tiny'", "experiment=option"],
    "hydra.job.name=x": ["hydra.job.name", "hydra.searchpath"],
    "hydra.searchpath=[/not/there]": ["hydra.searchpath: found '/not/there'", "a directory"],
    "hydra.searchpath=abc": ["hydra.searchpath: found 'abc'", "a directory"],
    "hydra.searchpath=null": ["hydra.searchpath: found 'None'", "a directory"],
    "optim.lr": ["'optim.lr' is not an override", "key=value"],
    "": ["'' is not an override"],
    "=3": ["'=3' is not an override"],
    "run..name=3": ["'run..name=3' is not an override"],
    "run.name=łódź": ["run.name: found 'łódź'", "in quotes", "'run.name=\"łódź\"'"],
    "run.name=a=b": ["run.name: found 'a=b'", "in quotes"],
    "run.name=(a": ["run.name: found '(a'"],
}


@pytest.mark.parametrize("override", MISTAKES)
def test_one_line_says_key_found_allowed_and_nearest(override: str):
    with pytest.raises(ConfigError) as caught:
        compose("", [override])
    message = str(caught.value)
    assert "\n" not in message
    assert "ConfigAttributeError" not in message and "hydra.cc" not in message
    for part in MISTAKES[override]:
        assert part in message


def test_every_wrong_override_is_named():
    with pytest.raises(ConfigError) as caught:
        compose("", ["lr=1", "modle=tiny"])
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["lr", "modle"]


@pytest.mark.parametrize(
    "text, value",
    [
        ("'/dane/Łódź i okolice'", "/dane/Łódź i okolice"),
        ('"a=b,c d"', "a=b,c d"),
        ("/plain/path-1.x", "/plain/path-1.x"),
        ("${oc.env:BIELIK_ROOT}/x", "/root dir/x"),
        ("'it''s'", "it''s"),
    ],
)
def test_values_that_need_quotes(text: str, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BIELIK_ROOT", "/root dir")
    if "''" in text:
        text = "\"it''s\""
    assert compose("", [f"run.dir={text}"]).run.dir == value


def test_interpolations_are_resolved():
    config = compose("", ["run.name='ala ma kota'"])
    assert config.run.dir == "runs/ala ma kota"
    assert "dir: runs/ala ma kota" in to_yaml(compose_dict("", ["run.name='ala ma kota'"]))


def test_items_of_lists_and_numbers_as_text():
    config = compose("tiny", ["data.sources.0.path=x", "trainer.precision=32", "optim.lr=1"])
    assert (config.data.sources[0].path, config.trainer.precision, config.optim.lr) == ("x", "32", 1.0)


def test_a_group_can_be_taken_away():
    assert compose("tiny", ["~prune"]).prune.target.num_layers is None


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's folder of configs, with a space and an = in its name."""
    directory = tmp_path / "my = configs"
    (directory / "experiment").mkdir(parents=True)
    (directory / "model").mkdir()
    (directory / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - tiny\n  - override /model: own\nrun: {name: mine}\n"
    )
    (directory / "model" / "own.yaml").write_text("source: /own\nshape: null\n")
    return directory


def test_own_folder_extends_ours(own: Path):
    for config in (
        compose("mine", [], config_dir=own),
        compose("", [f"hydra.searchpath=['file://{own}']", "experiment=mine"]),
    ):
        assert (config.run.name, config.model.source, config.optim.warmup_steps) == ("mine", "/own", 2)


@pytest.mark.parametrize(
    "content, parts",
    [
        ("sourc: x\n", ["model/own.yaml: model.sourc: unknown key", "did you mean model.source?"]),
        ("source: [x]\n", ["model/own.yaml: model.source: found ['x']", "text"]),
        ("shape: {num_layers: many}\n", ["model/own.yaml: model.shape.num_layers: found 'many'", "an integer"]),
        ("source: [x\n", ["own.yaml:2: not valid YAML"]),
        ("defaults: [nope]\n", ["nope"]),
    ],
)
def test_mistakes_in_own_files_name_the_file(own: Path, content: str, parts: list[str]):
    (own / "model" / "own.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        compose("mine", [], config_dir=own)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_own_experiment_with_unknown_option(own: Path):
    (own / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /model: smolm2\n")
    with pytest.raises(
        ConfigError,
        match=r"model: found 'smolm2', allowed: bielik_11b_v3, bielik_minitron_7b, own, smollm2, tiny; did you",
    ):
        compose("mine", [], config_dir=own)


def test_own_file_with_the_name_of_ours_is_not_silently_ignored(own: Path):
    (own / "experiment" / "tiny.yaml").write_text("run: {name: mine}\n")
    with pytest.raises(ConfigError, match=r"--config-dir: .*tiny.yaml would be hidden"):
        compose("tiny", [], config_dir=own)


def test_private_settings_are_found_in_the_own_folder(own: Path):
    (own / "local").mkdir()
    (own / "local" / "default.yaml").write_text("model: {source: /private}\n")
    assert compose("mine", [], config_dir=own).model.source == "/private"


def test_missing_own_folder():
    with pytest.raises(ConfigError, match="--config-dir: found '/not/there'"):
        compose("", [], config_dir="/not/there")


def test_sweep_is_the_cartesian_product_named_by_what_is_swept():
    jobs = expand_sweep(["experiment=tiny", "run.seed=1,2", "prune=none,tiny"])
    assert [name for name, _ in jobs] == [
        "run.seed=1,prune=none",
        "run.seed=1,prune=tiny",
        "run.seed=2,prune=none",
        "run.seed=2,prune=tiny",
    ]
    assert jobs[1][1] == ["experiment=tiny", "run.seed=1", "prune=tiny"]


def test_sweep_names_suit_a_file_name_and_stay_apart():
    jobs = expand_sweep(["model.source='/a/b','/a b','/ą'"])
    assert [name for name, _ in jobs] == [
        "model.source=%27%2Fa%2Fb%27",
        "model.source=%27%2Fa%20b%27",
        "model.source=%27%2F%C4%85%27",
    ]
    assert compose("", jobs[2][1]).model.source == "/ą"


def test_sweep_over_the_folder_needs_no_names():
    assert [name for name, _ in expand_sweep(["run.name=a,b", "optim.lr=1,2"])] == ["", "", "", ""]


def test_no_sweep_is_one_job():
    assert expand_sweep(["optim.lr=1"]) == [("", ["optim.lr=1"])]


def test_continuous_sweep_is_refused():
    with pytest.raises(ConfigError, match="--multirun"):
        expand_sweep(["optim.lr=interval(0,1)"])


def test_composes_inside_another_hydra_application(tmp_path: Path):
    """The loader leaves Hydra's global state alone, whether there is one or not."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    assert not GlobalHydra.instance().is_initialized()
    compose("tiny")
    assert not GlobalHydra.instance().is_initialized()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        before = GlobalHydra.instance().hydra
        assert compose("tiny").run.name == "tiny"
        assert GlobalHydra.instance().hydra is before


def test_search_path_of_an_installed_package():
    assert compose("tiny", ["hydra.searchpath=[pkg://bielik_nemo.conf]"]).run.name == "tiny"
