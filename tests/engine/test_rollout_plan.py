"""What the rollouts of a run are made of."""

import json
from pathlib import Path

import pytest

from bielik_nemo.engine.rollout_plan import plan
from bielik_nemo.errors import DataError


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Ten tasks with prompts of 1 to 10 tokens."""
    rows = [
        {"source": 0, "place": f"tasks:{n}", "ids": list(range(n)), "prompt": str(n), "answer": "", "language": ""}
        | {"tools": []}
        for n in range(1, 11)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_steps_by_hand(file: str):
    """Seven prompts of up to 7 tokens, 4 a rollout, 2 an update, twice: 4 updates; 3 epochs: 21 prompts, 6 rollouts."""
    found = plan(file, 7, prompts=4, batch=2, passes=2, epochs=3, max_steps=None)
    assert (len(found.tasks), found.left_out, found.updates, found.steps) == (7, 3, 4, 24)
    assert plan(file, 7, prompts=4, batch=2, passes=2, epochs=3, max_steps=5).steps == 5


def test_every_epoch_asks_each_task_once_in_another_order(file: str):
    """Rollouts of 4 go across the end of an epoch of 10: in 5 of them each task is asked twice."""
    found = plan(file, 10, prompts=4, batch=4, passes=1, epochs=1, max_steps=None)
    asked = [task.task.prompt for rollout in range(5) for task in found.drawn(rollout, 4, seed=1)]
    assert sorted(asked[:10], key=int) == sorted(asked[10:], key=int) == [str(n) for n in range(1, 11)]
    assert asked[:10] != asked[10:]
    assert asked == [task.task.prompt for rollout in range(5) for task in found.drawn(rollout, 4, seed=1)]
    assert asked != [task.task.prompt for rollout in range(5) for task in found.drawn(rollout, 4, seed=2)]


def test_no_task_is_short_enough(file: str):
    with pytest.raises(DataError, match=r"no task has a prompt of at most grpo.max_prompt_tokens=0"):
        plan(file, 0, prompts=4, batch=4, passes=1, epochs=1, max_steps=None)
