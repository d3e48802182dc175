"""What stops tasks before anything runs: each with the file that is missing, or the code that would run."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason='needs lm-evaluation-harness: pip install "bielik_nemo[measure]"')

from bielik_nemo.config_outcome import Harness
from bielik_nemo.data import harness, harness_checks


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """As where nothing says that there is no network."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    harness._index.cache_clear()


def task(directory: Path, name: str, more: str, metric: str = "{metric: acc}") -> Harness:
    text = (
        f"task: {name}\ndataset_path: someone/{name}\ntest_split: test\ndoc_to_text: question\ndoc_to_target: answer\n"
    )
    (directory / f"{name}.yaml").write_text(f"{text}metric_list: [{metric}]\n{more}")
    return Harness(tasks=[name], include_path=str(directory))


def found(settings: Harness) -> list[str]:
    return list(harness_checks.problems(settings))


def test_missing_documents_say_where_they_go_and_what_is_in_them(tmp_path, monkeypatch):
    settings = task(tmp_path, "quiz", "")
    settings.data_dir = str(tmp_path)
    (line,) = found(settings)
    assert line == (
        f"evaluate.harness.data_dir: task quiz: found no {tmp_path}/quiz/test.jsonl (or .parquet), which has the split "
        "test of someone/quiz, a document a line with answer, question, or evaluate.harness.download=true"
    )
    settings.download = True
    assert found(settings) == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (line,) = found(settings)
    assert line.endswith("a document a line with answer, question")
    (tmp_path / "quiz").mkdir()
    (tmp_path / "quiz" / "test.jsonl").write_text("{}")
    assert found(settings) == []


def test_files_of_ones_own_go_where_they_count(tmp_path):
    """What `dataset_kwargs` names may change behind a finished evaluation."""
    settings = task(tmp_path, "quiz", "dataset_kwargs: {data_files: {test: /mine/quiz.json}}")
    (tmp_path / "quiz.yaml").write_text((tmp_path / "quiz.yaml").read_text().replace("someone/quiz", "json"))
    (line,) = found(settings)
    assert "found no <evaluate.harness.data_dir>/quiz/test.jsonl (or .parquet)" in line


def test_a_file_of_many_tasks_is_named_once():
    """Of 23 translations into Polish: the devtest and the examples."""
    first, second = found(Harness(tasks=["flores_to_pl"]))
    assert "<evaluate.harness.data_dir>/flores/all/devtest.jsonl" in first and "flores/all/dev.jsonl" in second
    assert "bielik_flores_ces_Latn-pol_Latn" in first and "and 20 more" in first and "sentence_swe_Latn" in first


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("process_docs: !function utils.steal", "found !function utils.steal, which is code, in task quiz"),
        ("class: utils.Steal", "found class: utils.Steal, which is code"),
        ("use_prompt: promptsource:*", "found use_prompt: promptsource:*, which is code"),
        ("include: other.yml", "other.yml: found !function utils.steal"),
    ],
)
def test_code_of_others_is_refused_unless_it_is_allowed(tmp_path, more, message):
    (tmp_path / "other.yml").write_text("doc_to_text: !function utils.steal\n")
    settings = task(tmp_path, "quiz", more)
    settings.download = True
    (line,) = found(settings)
    assert message in line and "evaluate.harness.allow_code=true" in line
    settings.allow_code = True
    assert found(settings) == []


@pytest.mark.parametrize("metric", ["{metric: f1, hf_evaluate: true}", "{metric: someones_score}"])
def test_metrics_of_the_hub_are_refused(tmp_path, metric):
    settings = task(tmp_path, "quiz", "", metric)
    settings.download = settings.allow_code = True
    (line,) = found(settings)
    assert "of the hub, which is code" in line


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "_index", lambda include, shipped: {"capitals": None})
    (line,) = found(Harness(tasks=["capitols"]))
    assert "found 'capitols', which is no task; did you mean capitals?" in line
    (line,) = found(Harness(tasks=["x"], data_dir=str(tmp_path / "no")))
    assert line == f"evaluate.harness.data_dir: no such directory: '{tmp_path}/no'"
    monkeypatch.setattr(harness_checks, "find_spec", lambda name: None)
    (line,) = found(Harness(tasks=["x"]))
    assert line.endswith('which is not installed; pip install "bielik_nemo[measure]"')


def test_ours_need_no_permission():
    assert found(Harness(tasks=["polish_corrections"])) == []
