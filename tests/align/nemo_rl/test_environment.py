"""Rewards as NeMo-RL asks for them, with a scorer that says what it is told."""

from __future__ import annotations

import json
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from bielik_nemo.align.nemo_rl import environment
from bielik_nemo.align.nemo_rl.environment import TaskEnvironment, values
from bielik_nemo.align.reward import Completion, Task, Verdict
from bielik_nemo.align.scoring import Scored
from bielik_nemo.errors import GateError

LINE = {"source": 1, "place": "a.jsonl:3", "prompt": "2 + 2?", "answer": "4", "language": "pl", "tools": []}


class Scorer:
    """Gives 1 for the right answer, 0.3 for another, and fails at `broken`; keeps what it was asked."""

    def __init__(self, terms: Any, rewards: Any):
        self.terms, self.rewards, self.asked, self.left = terms, rewards, [], False

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *error: object) -> None:
        self.left = True

    def submit(self, completion: Completion, task: Task, source: int) -> Future:
        self.asked.append((completion, task, source))
        future: Future = Future()
        right = completion.text == task.answer
        found = Scored(1.0 if right else 0.3, Verdict.CORRECT if right else Verdict.WRONG, {"maths": float(right)})
        future.set_result(Scored(0.0, Verdict.UNVERIFIABLE, {}, "it raised") if completion.text == "broken" else found)
        return future


class Words:
    """A tokenizer whose tokens are words; 2 is the end."""

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[str]]:
        return {"input_ids": text.replace("<|im_end|>", " <|im_end|>").split()}

    def decode(self, ids: list[int]) -> str:
        return {2: "<|im_end|>"}[ids[0]]


@pytest.fixture
def made(monkeypatch, tmp_path, nemo_rl):
    """An environment in which half of the rewards may fail."""
    monkeypatch.setattr(environment, "Scorer", Scorer)
    rewards = {"timeout_s": 1.0, "memory_gib": 1.0, "workers": 1, "max_error_share": 0.5}
    terms = [[], [{"function": "a.b", "weight": 2.0, "options": {}}]]
    settings = {"terms": terms, "rewards": rewards, "stop_ids": [2], "stop": ["###"]}
    return TaskEnvironment({**settings, "answers": str(tmp_path / "rollouts")}, Words())


def asked(made: TaskEnvironment, *answers: str, places: list[str] | None = None) -> Any:
    """What it says to these answers."""
    turns = [
        [{"role": "user", "content": "?"}, {"role": "assistant", "content": f"{text}<|im_end|>"}] for text in answers
    ]
    lines = [LINE | {"place": place} for place in places or ["a.jsonl:3"] * len(answers)]
    return made.step(turns, lines)


def test_hands_on_the_answer_and_the_task(made):
    found = asked(made, "4", "5")
    assert [each[1:] for each in made.scorer.asked] == [(Task("2 + 2?", "4", "pl", ()), 1)] * 2
    assert found.rewards.dtype == torch.float32
    assert found.rewards.tolist() == [1.0, pytest.approx(0.3, abs=1 / 4096)]
    assert found.terminateds.tolist() == [1, 1]  # one turn
    assert [each["content"] for each in found.observations] == ["", ""]
    assert made.scorer.terms[1][0].weight == 2.0
    assert made.scorer.rewards.max_error_share == 0.5


@pytest.mark.parametrize(
    ("text", "completion"),
    [
        ("a b<|im_end|>", Completion("a b", 3)),
        ("a b c d", Completion("a b c d", 4, ended=False)),
        ("a b ###", Completion("a b ###", 3)),
        ("<|im_end|>", Completion("", 1)),
    ],
)
def test_end_and_length_of_an_answer(made, text, completion):
    assert made.completion(text) == completion


def test_an_equal_reward_gives_no_signal():
    """0.3 is rounded to 1229 / 4096: eight of them and their mean are exact in float32, those of 0.3 itself are not."""
    rewards = torch.tensor(values(["a"] * 7, [Scored(0.3, Verdict.WRONG)] * 7), dtype=torch.float32)
    assert rewards[0] == 1229 / 4096
    assert ((rewards - torch.ones(7, 7) @ rewards / 7) == 0).all()


def test_an_answer_whose_reward_failed_gets_the_mean_of_its_group(made):
    """1 and 1229 / 4096 of group a: 0.65; the other group knows of none."""
    found = asked(made, "4", "broken", "5", "broken", places=["a", "a", "a", "b"])
    assert found.rewards.tolist() == [1.0, pytest.approx((1 + 1229 / 4096) / 2), 1229 / 4096, 0.0]


def test_too_many_failures_stop_the_run(made):
    with pytest.raises(
        GateError, match=r"max_error_share: the rewards of 2 of 3 answers failed, allowed: 50.0%; .*it raised"
    ):
        asked(made, "broken", "4", "broken")
    assert len(rows(made, 0)) == 3  # which are kept


def rows(made: TaskEnvironment, number: int) -> list[dict[str, Any]]:
    with open(f"{made.settings['answers']}/{number:05}.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_keeps_answers(made):
    asked(made, "4")
    asked(made, "a b c d", "ż")
    assert rows(made, 0) == [
        {
            "prompt": "2 + 2?",
            "answer": "4",
            "value": 1.0,
            "verdict": "correct",
            "parts": {"maths": 1.0},
            "tokens": 2,
            "ended": True,
            "source": 1,
            "place": "a.jsonl:3",
            "error": "",
        }
    ]
    assert [(row["answer"], row["tokens"]) for row in rows(made, 1)] == [("a b c d", 5), ("ż", 2)]


def test_keeps_none_where_none_are_wanted(made, tmp_path):
    made.settings["answers"] = None
    asked(made, "4")
    assert not (tmp_path / "rollouts").exists()


def test_ends(made):
    made.shutdown()
    assert made.scorer.left
