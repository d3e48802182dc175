"""Which tasks a name means, where their documents are read from, and how they are made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason='needs lm-evaluation-harness: pip install "bielik_nemo[measure]"')

from bielik_nemo.config_outcome import Harness
from bielik_nemo.data import harness
from bielik_nemo.errors import DataError

CAPITALS = """
task: capitals
dataset_path: someone/capitals
dataset_name: europe
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "{{country}}?"
doc_to_choice: ["A", "B"]
doc_to_target: right
metric_list: [{metric: acc}]
"""


@pytest.fixture
def mine(tmp_path: Path) -> Harness:
    """A task of one's own with two examples and twelve documents, `{country, right}`."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "capitals.yaml").write_text(CAPITALS)
    folder = tmp_path / "data" / "capitals" / "europe"
    folder.mkdir(parents=True)
    for split, count in (("train", 2), ("test", 12)):
        lines = [json.dumps({"country": f"{split} {number}", "right": number % 2}) for number in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return Harness(tasks=["capitals"], data_dir=str(tmp_path / "data"), include_path=str(tmp_path / "tasks"))


def test_documents_come_from_files(mine):
    (task,) = harness.chosen(mine)
    assert (task.name, task.group, task.dataset, task.fields) == (
        "capitals",
        "",
        "capitals/europe",
        ["country", "right"],
    )
    built = harness.build(task, mine)
    assert len(built.eval_docs) == 12 and built.config.num_fewshot == 0
    assert built.fewshot_context(built.eval_docs[1], 0) == "test 1?"


def test_examples_come_from_the_training_split_and_are_the_same_each_time(mine):
    """Without examples it need not be there."""
    mine.shots = 2
    (task,) = harness.chosen(mine)
    assert task.splits(2) == ["test", "train"] and task.splits(None) == ["test"]
    built = harness.build(task, mine)
    first = built.fewshot_context(built.eval_docs[0], 2)
    assert sorted(first.split("\n\n")[:2]) == ["train 0? A", "train 1? B"]
    built.set_fewshot_seed(harness.SEED)
    assert built.fewshot_context(built.eval_docs[0], 2) == first
    (Path(mine.data_dir) / "capitals" / "europe" / "train.jsonl").unlink()
    mine.shots = 0
    assert len(harness.build(task, mine).eval_docs) == 12


def test_no_document_is_its_own_example(mine):
    """Where there is no split for examples; eleven of the twelve are left, whatever is drawn."""
    path = Path(mine.include_path) / "capitals.yaml"
    path.write_text(path.read_text().replace("training_split: train\n", ""))
    harness._index.cache_clear()
    mine.shots = 11
    (task,) = harness.chosen(mine)
    built = harness.build(task, mine)
    for document in built.eval_docs:
        *shown, asked = built.fewshot_context(document, 11).split("\n\n")
        assert len(shown) == 11 and not any(example.startswith(asked) for example in shown)
    mine.shots = 12
    with pytest.raises(DataError, match="task capitals: found 11 examples, allowed: 12"):
        harness.build(task, mine)


def test_a_group_is_taken_apart_with_what_it_says(mine):
    """Its own `num_fewshot` counts; a task is asked once, under the name that it was first found by."""
    group = "group: places\ntask:\n  - task: capitals\n    num_fewshot: 1\nmetadata: {version: 1}\n"
    (Path(mine.include_path) / "places.yaml").write_text(group)
    mine = Harness(tasks=["places", "capitals"], data_dir=mine.data_dir, include_path=mine.include_path)
    harness._index.cache_clear()
    (task,) = harness.chosen(mine)
    assert (task.name, task.group, task.shots(None), task.shots(3)) == ("capitals", "places", 1, 3)
    assert harness.build(task, mine).config.num_fewshot == 1


def test_parquet_serves_as_well(mine):
    import pyarrow
    import pyarrow.parquet

    folder = Path(mine.data_dir) / "capitals" / "europe"
    (folder / "test.jsonl").unlink()
    table = pyarrow.Table.from_pylist([{"country": "x", "right": 1}])
    pyarrow.parquet.write_table(table, folder / "test.parquet")
    (task,) = harness.chosen(mine)
    assert harness.build(task, mine).eval_docs[0] == {"country": "x", "right": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"country": "x", "right": 1}\n{"country"', r"test.jsonl:2: not JSON"),
        ("[1]", "test.jsonl:1: found list, allowed: a JSON object per line"),
        ("\n", "test.jsonl: found no document"),
        ('{"country": "x"}', "test.jsonl: document 1: found no right, allowed: country, right"),
    ],
)
def test_documents_that_cannot_be_read(mine, content: str, message: str):
    (Path(mine.data_dir) / "capitals" / "europe" / "test.jsonl").write_text(content)
    (task,) = harness.chosen(mine)
    with pytest.raises(DataError, match=message):
        harness.build(task, mine)


def test_templates_cannot_reach_out(mine):
    """lm_eval 0.4.13 renders them in jinja2's plain environment; when it no longer does, `_sandbox` can go."""
    evil = CAPITALS.replace("{{country}}?", "{{ country.__class__.__mro__ }}")
    (Path(mine.include_path) / "capitals.yaml").write_text(evil)
    harness._index.cache_clear()
    (task,) = harness.chosen(mine)
    with pytest.raises(DataError, match="access to attribute '__class__' of 'str' object is unsafe"):
        harness.build(task, mine)


def test_ours_are_the_ones_that_the_configs_name():
    """Thirteen of the leaderboard, one of them the harness's own; 23 languages in both directions; some with a chance.

    Every one of ours has the fields of its templates and a metric of the harness or of ours.
    """
    harness._index.cache_clear()
    tasks = harness.chosen(Harness(tasks=["flores_to_pl", "flores_from_pl", "polish_corrections"]))
    assert (
        [task.group for task in tasks].count("flores_to_pl") == [t.group for t in tasks].count("flores_from_pl") == 23
    )
    assert all(len(task.fields) == 2 and "sentence_pol_Latn" in task.fields for task in tasks if task.group)
    names = harness._entry("", "open_pl_llm").cfg["task"]
    ours = [harness.chosen(Harness(tasks=[name]))[0] for name in names if "bielik_" in name]
    assert len(names) == 13 and len(ours) == 12
    assert all(task.fields and task.shots(None) == 5 for task in ours)
    assert {task.config["metadata"].get("chance") for task in ours} == {0.25, 0.1667, 0.125, 0.3333, 0.5, None}
