"""What our benchmarks compute that lm-evaluation-harness has no name for.

Answers to questions are right as in PolEval 2021 and PolQA: a number must be the number, any other answer may differ
from a right one in fewer than half of its letters (edit distance), upper and lower case aside.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from bielik_nemo.data.builtin_chat import CORRECTIONS, pairs


def macro_f1(items: Sequence[tuple[int, int]]) -> float:
    """Mean of the F1 of every class, from the right class and the one found of each document."""
    from sklearn.metrics import f1_score

    right, found = zip(*items, strict=True)
    return float(f1_score(right, found, average="macro", zero_division=0))


def answered(document: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the answer is one of the document's: a list, its text, or SQuAD's `{"text": [...]}`."""
    right = document["answers"]
    if isinstance(right, dict):
        right = right["text"]
    elif isinstance(right, str):
        right = ast.literal_eval(right)
    return {"levenshtein": float(any(alike(results[0], each) for each in right))}


def alike(answer: str, right: str) -> bool:
    """Whether an answer counts as a right one."""
    answer, right = answer.strip().rstrip(".").lower(), right.strip().lower()
    if right.isdigit():
        return answer == right
    return distance(answer, right) < len(right) / 2


def distance(a: str, b: str) -> int:
    """Letters to be put in, taken out or changed to make one text of the other."""
    row = list(range(len(b) + 1))
    for i, of_a in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, of_b in enumerate(b, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (of_a != of_b))
    return row[-1]


def questions(dataset: Any) -> Any:
    """Documents with a question that no document before has, of a set with several passages for each."""
    seen: set[str] = set()

    def first(document: dict[str, Any]) -> bool:
        known = document["question"] in seen
        seen.add(document["question"])
        return not known

    return dataset.filter(first)


def with_answers(dataset: Any) -> Any:
    """Documents that hold the answer to their question."""
    return dataset.filter(lambda document: bool(document["answers"]["text"]))


def relevant(dataset: Any) -> Any:
    """The first passage of every question that answers it."""
    return questions(dataset.filter(lambda document: str(document["relevant"]).lower() in ("true", "1")))


def corrections(**_: Any) -> dict[str, Any]:
    """Sentences with a mistake and their corrections, out of an installed package; no files and no network."""
    from datasets import Dataset

    rows = [
        {"right": pair["chosen"], "wrong": pair["rejected"], "first": int(number % 2)}
        for number, pair in enumerate(pairs(CORRECTIONS))
    ]
    return {"test": Dataset.from_list(rows)}
