"""Benchmarks: the harness gives a Megatron model and its export the same scores, which are then held side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason='needs lm-evaluation-harness: pip install "bielik_nemo[measure]"')

from lm_eval.models.huggingface import HFLM
from sklearn.metrics import f1_score

from bielik_nemo.architecture import Architecture
from bielik_nemo.config import compose
from bielik_nemo.config_outcome import Harness
from bielik_nemo.data import harness
from bielik_nemo.engine import convert, distributed, model
from bielik_nemo.engine.asking import ask
from bielik_nemo.errors import GateError
from bielik_nemo.stages.harness import Benchmarks, compare
from bielik_nemo.stages.subject import Subject

TASKS = {
    "sides": "output_type: multiple_choice\ndoc_to_choice: ['left', 'right']\ndoc_to_target: side\n"
    "metric_list: [{metric: acc}, {metric: f1}]",
    "rest": "output_type: generate_until\ndoc_to_target: rest\n"
    "generation_kwargs: {until: ['\\n', '.'], max_gen_toks: 12}\n"
    "metric_list: [{metric: bleu}]",
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Harness:
    """A multiple choice and a task of writing, of 12 documents, in files of one's own."""
    base = tmp_path_factory.mktemp("benchmarks")
    (base / "tasks").mkdir()
    (base / "data" / "words").mkdir(parents=True)
    head = (
        "dataset_path: mine/words\ntest_split: test\nfewshot_split: test\ndoc_to_text: 'The {{word}}'\nnum_fewshot: 1\n"
    )
    for name, text in TASKS.items():
        (base / "tasks" / f"{name}.yaml").write_text(f"task: {name}\n{head}{text}\n")
    words = "package module function class method list dict value error test file path".split()
    lines = [json.dumps({"word": word, "side": n % 2, "rest": f"{word} is"}) for n, word in enumerate(words)]
    (base / "data" / "words" / "test.jsonl").write_text("\n".join(lines))
    return Harness(
        tasks=["sides", "rest"], data_dir=str(base / "data"), include_path=str(base / "tasks"), limit=10, resamples=20
    )


@pytest.fixture(scope="module")
def measured(settings, tiny_hf: Path, tmp_path_factory) -> tuple[Benchmarks, dict[str, Any]]:
    """The tiny model as Megatron's, and how often it was asked when it was measured twice."""
    run_dir = tmp_path_factory.mktemp("run")
    config = compose("tiny")
    config.evaluate.harness, config.evaluate.batch_size = settings, 3
    a = Architecture.from_hf(tiny_hf)
    subject = Subject("source", tiny_hf, tiny_hf, a)
    benchmarks = Benchmarks(config, run_dir)
    with distributed.model_parallel():
        megatron = model.build(model.gpt_config(a), a)
        convert.load_hf(megatron, tiny_hf, a)
        benchmarks.measure(subject, megatron)
        files = {path.stem: path.stat().st_mtime_ns for path in (benchmarks.here / "source").iterdir()}
        (benchmarks.here / "source" / "rest.json").unlink()
        benchmarks.measure(subject, megatron)
    again = {path.stem: path.stat().st_mtime_ns for path in (benchmarks.here / "source").iterdir()}
    return benchmarks, {name: again[name] != files[name] for name in files}


@pytest.mark.parametrize("name", TASKS)
def test_a_megatron_model_scores_as_its_export_does_by_the_harnesss_own_adapter(name, measured, settings, tiny_hf):
    benchmarks, _ = measured
    own = json.loads((benchmarks.here / "source" / f"{name}.json").read_text())
    lm = HFLM(pretrained=str(tiny_hf), device="cpu", dtype="float32", batch_size=4)
    task = next(task for task in benchmarks.tasks if task.name == name)
    expected = ask(lm, harness.build(task, settings), settings.limit, False)
    assert own["scores"] == expected["scores"] and own["shots"] == expected["shots"] == 1
    assert len(own["documents"]) == 10
    for found, wanted in zip(own["documents"], expected["documents"], strict=True):
        assert (found["digest"], found["value"]) == (wanted["digest"], wanted["value"])
    assert {json.dumps(each["value"]) for each in own["documents"]} != {json.dumps(own["documents"][0]["value"])}


def test_what_is_there_is_not_asked_again(measured):
    assert measured[1] == {"sides": False, "rest": True}


def test_a_model_recovers_all_of_itself(measured):
    """With one model there is nothing to recover."""
    found = measured[0].compared(["source"])
    assert found["mean"] == {} and found["tasks"]["rest"]["metric"] == "bleu"
    assert found["tasks"]["sides"]["models"]["source"].keys() == {"value", "low", "high"}


def answers(values: list, mean: bool = True, metric: str = "acc", better: bool = True) -> dict[str, Any]:
    documents = [{"digest": str(number), "value": value} for number, value in enumerate(values)]
    return {"metric": metric, "mean": mean, "higher_is_better": better, "shots": 5, "documents": documents}


def test_recovery_of_means_and_of_what_is_none():
    """Accuracy 0.8 and 0.4 of 60: a half is kept. F1 of the student: 3 of 4 positives and one more found, 0.75 of 1.

    Their mean is 0.625; perplexity has no share; chance is 0.25: (0.8 - 0.25) / 0.75.
    """
    gold = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0] * 6
    half = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0] * 6
    pairs = {"source": gold, "distilled": [1, 1, 1, 0, 1, 0, 0, 0, 0, 0] * 6}
    found = {
        "right": {"source": answers([1, 1, 1, 1, 1, 1, 1, 1, 0, 0] * 6), "distilled": answers(half)},
        "f1": {name: answers(list(zip(gold, each, strict=True)), False, "f1") for name, each in pairs.items()},
        "words": {name: answers([1.0 + n % 3 for n in range(60)], True, "loss", False) for name in pairs},
    }
    tasks = [
        harness.HarnessTask("right", "open_pl_llm", Path("x"), {"metadata": {"chance": 0.25}}, {}),
        harness.HarnessTask("f1", "open_pl_llm", Path("x"), {}, {}),
        harness.HarnessTask("words", "", Path("x"), {}, {}),
    ]

    def f1(items: list) -> float:
        return float(f1_score(*zip(*items, strict=True)))

    result = compare(tasks, found, lambda name, metric: f1, Harness(resamples=200))
    right, of_f1, words = (result["tasks"][name] for name in ("right", "f1", "words"))
    assert right["recovery"]["distilled"]["value"] == pytest.approx(0.5)
    assert right["recovery"]["distilled"]["verdict"] == "lost"
    assert right["above_chance"] == pytest.approx({"source": 0.55 / 0.75, "distilled": 0.15 / 0.75})
    assert of_f1["models"]["source"] == {"value": 1, "low": 1, "high": 1}
    assert of_f1["recovery"]["distilled"]["value"] == pytest.approx(0.75)
    assert words["recovery"] == {"distilled": {"reason": "loss is better when it is lower"}}
    assert (right["samples"], right["shots"], right["group"]) == (60, 5, "open_pl_llm")
    assert result["mean"]["distilled"]["value"] == pytest.approx(0.625)
    assert result["groups"]["open_pl_llm"]["distilled"] == result["mean"]["distilled"]
    assert (result["teacher"], result["confidence"]) == ("source", 0.95)
    json.dumps(result, allow_nan=False)


def test_a_score_that_is_no_number_stops_it():
    found = {"right": {"source": answers([1, 0]), "distilled": answers([1, float("nan")])}}
    with pytest.raises(GateError, match="task right: acc of distilled is not finite"):
        compare([harness.HarnessTask("right", "", Path("x"), {}, {})], found, lambda *_: sum, Harness())


def test_models_that_were_asked_other_documents_are_not_compared():
    found = {"right": {"source": answers([1, 0]), "distilled": answers([1])}}
    with pytest.raises(GateError, match="task right: distilled was asked other documents than source"):
        compare([harness.HarnessTask("right", "", Path("x"), {}, {})], found, lambda *_: sum, Harness())
