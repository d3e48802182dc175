"""What our benchmarks compute by themselves, by hand."""

from __future__ import annotations

import pytest

from bielik_nemo.harness_tasks import functions


def test_macro_f1():
    """Class 0: precision 2/3, recall 2/2, F1 0.8; class 1: 1/1, 1/2, 2/3; mean 11/15."""
    pytest.importorskip("sklearn", reason="comes with lm-evaluation-harness")
    assert functions.macro_f1([(0, 0), (0, 0), (1, 0), (1, 1)]) == pytest.approx(11 / 15)


@pytest.mark.parametrize(
    ("a", "b", "letters"), [("", "kot", 3), ("kot", "kot", 0), ("kot", "koty", 1), ("Łódź", "Lodz", 3), ("ab", "ba", 2)]
)
def test_distance(a: str, b: str, letters: int):
    assert functions.distance(a, b) == functions.distance(b, a) == letters


@pytest.mark.parametrize(
    ("answer", "right", "alike"),
    [
        (" Warszawa.", "warszawa", True),
        ("Warszawie", "Warszawa", True),  # two of eight
        ("Wawa", "Warszawa", False),  # four of eight
        ("1417", "1418", False),
        ("1418", "1418", True),
        ("", "Ur", False),
    ],
)
def test_alike(answer: str, right: str, alike: bool):
    assert functions.alike(answer, right) is alike


@pytest.mark.parametrize(
    "answers", [["Ur", "Uruk"], "['Ur', 'Uruk']", {"text": ["Ur", "Uruk"], "answer_start": [1, 2]}]
)
def test_one_of_the_answers_is_enough(answers):
    assert functions.answered({"answers": answers}, ["uruk"]) == {"levenshtein": 1}
    assert functions.answered({"answers": answers}, ["Babilon"]) == {"levenshtein": 0}


def test_documents_that_are_asked():
    datasets = pytest.importorskip("datasets")
    rows = [("a", 0), ("a", 1), ("b", True), ("c", "False"), ("b", "True")]
    passages = datasets.Dataset.from_list(
        [{"question": q, "relevant": str(r), "number": n} for n, (q, r) in enumerate(rows)]
    )
    assert functions.questions(passages)["number"] == [0, 2, 3]
    assert functions.relevant(passages)["number"] == [1, 2]
    texts = datasets.Dataset.from_list([{"answers": {"text": ["x"]}}, {"answers": {"text": []}}])
    assert len(functions.with_answers(texts)) == 1


def test_corrections_stand_first_and_second_in_turn():
    pytest.importorskip("datasets")
    found = functions.corrections()["test"]
    assert len(found) > 1900 and found[:4]["first"] == [0, 1, 0, 1]
    assert all(row["right"] != row["wrong"] for row in found)
