"""Tasks -> files of tokens that ask, and their two sides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bielik_nemo import pipeline
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.config_align import ChatSource
from bielik_nemo.config_grpo import RewardTerm, TaskSource
from bielik_nemo.data.tasks import Prepared, read
from bielik_nemo.data.text import Document, is_held_out
from bielik_nemo.engine import cpu
from bielik_nemo.errors import ConfigError, DataError

cpu.enable()

from bielik_nemo.engine.labelled import Conversations  # noqa: E402
from bielik_nemo.stages import GRAPH, chat, tasks  # noqa: E402

END = 260
MATHS = [RewardTerm("bielik_nemo.align.rewards.maths")]


@pytest.fixture
def run_dir(tiny_hf: Path, tmp_path: Path) -> Path:
    """A run directory after the import of the tiny model."""
    shutil.copytree(tiny_hf, tmp_path / "run" / "import_hf" / "tokenizer")
    (tmp_path / "run" / "tasks").mkdir()
    Architecture.from_hf(tiny_hf).to_json(tmp_path / "run" / "import_hf" / "architecture.json")
    return tmp_path / "run"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made = Config()
    made.grpo.sources = [TaskSource(str(tmp_path / "a.jsonl"), rewards=MATHS)]
    made.chat.held_out_fraction = 0.5
    return made


def line(prompt: str, answer: object = "4", **more: object) -> str:
    return json.dumps({"prompt": prompt, "answer": answer} | more) + "\n"


def both(run_dir: Path) -> dict[str, list[Prepared]]:
    return {side: read(run_dir / "tasks" / f"{side}.jsonl") for side in ("train", "held_out")}


def test_every_task_is_on_one_side_and_counted(run_dir: Path, config: Config, tmp_path: Path):
    """Copies of a prompt in other letters are on its side; the second source has a language."""
    prompts = [f"Ile to {number}?" for number in range(8)]
    (tmp_path / "a.jsonl").write_text("".join(line(p) + line(p.upper()) for p in prompts))
    (tmp_path / "b.jsonl").write_text("".join(map(line, "bcdefgh")))
    config.grpo.sources.append(TaskSource(str(tmp_path / "b.jsonl"), "pl", MATHS))
    summary = tasks.run(config, run_dir)
    assert summary == json.loads((run_dir / "tasks" / "summary.json").read_text())
    sides = both(run_dir)
    for side, found in sides.items():
        aside = [
            is_held_out(Document(each.task.prompt, "", 0), config.chat.held_out_fraction, config.run.seed)
            for each in found
        ]
        assert found and set(aside) == {side == "held_out"}
        assert summary[side] == {"tasks": len(found), "tokens": sum(len(each.ids) for each in found)}
        assert {each.task.language for each in found if each.source} <= {"pl"}
    places = [each.place for found in sides.values() for each in found]
    lines = [("a", number) for number in range(1, 17)] + [("b", number) for number in range(1, 8)]
    assert sorted(places) == sorted(f"{tmp_path}/{name}.jsonl:{number}" for name, number in lines)
    for number, row in enumerate(summary["sources"]):
        mine = [each for each in sides["train"] if each.source == number]
        counts = {"tasks": len(mine), "tokens": sum(len(each.ids) for each in mine), "skipped": 0}
        assert row == {"name": "ab"[number] + ".jsonl", "language": ["", "pl"][number]} | counts
    assert summary["stop_ids"] == [END]
    assert (run_dir / "tasks" / "skipped.jsonl").read_text() == ""


def test_bad_lines_are_left_out_or_stop_the_stage(run_dir: Path, config: Config, tmp_path: Path):
    """One of 101 lines is more than 0.1 %, and less than 1 %."""
    (tmp_path / "a.jsonl").write_text("".join(line(f"{number}") for number in range(100)) + '{"prompt": "sekret"}\n')
    with pytest.raises(DataError) as caught, pipeline._failure(run_dir / "tasks", GRAPH["tasks"]):
        tasks.run(config, run_dir)
    why = "no key 'answer' (null: there is nothing to compare with)"
    assert str(caught.value) == (
        f"grpo.sources[0].path={tmp_path}/a.jsonl: 1 of 101 lines (0.99%) cannot be used, allowed: 0.10% "
        f"(chat.max_bad_share); {tmp_path}/a.jsonl:101: {why}; all: {run_dir}/tasks/skipped.jsonl"
    )
    assert [path.name for path in (run_dir / "tasks").iterdir()] == ["skipped.jsonl"]
    config.chat.max_bad_share = 0.01
    assert tasks.run(config, run_dir)["sources"][0]["skipped"] == 1
    (row,) = map(json.loads, (run_dir / "tasks" / "skipped.jsonl").read_text().splitlines())
    assert row == {"file": f"{tmp_path}/a.jsonl", "line": 101, "why": why}


@pytest.mark.parametrize("fraction, what", [(0.999, "no tasks of grpo.sources[0]"), (0.0, "no tasks fall")])
def test_a_side_without_tasks(run_dir: Path, config: Config, tmp_path: Path, fraction: float, what: str):
    config.chat.held_out_fraction = fraction
    (tmp_path / "a.jsonl").write_text(line("a"))
    with pytest.raises(DataError, match=rf"^chat\.held_out_fraction={fraction}: ") as caught:
        tasks.run(config, run_dir)
    assert what in str(caught.value)


def test_a_reward_that_is_not_there_is_named_by_its_key(run_dir: Path, config: Config, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(line("a"))
    config.grpo.sources[0].rewards = [*MATHS, RewardTerm("bielik_nemo.align.rewards.math")]
    with pytest.raises(ConfigError, match=r"^grpo\.sources\[0\]\.rewards\[1\]\.function: found 'bielik_nemo"):
        tasks.run(config, run_dir)


def test_a_source_without_lines(run_dir: Path, config: Config, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="holds no lines"):
        tasks.run(config, run_dir)


def test_what_is_held_out_of_tasks_is_held_out_of_sft(run_dir: Path, config: Config, tmp_path: Path):
    """The same 200 prompts as conversations and as tasks, half of them aside: the same half."""
    rows = [{"prompt": f"Ile to {number}?", "answer": "4", "completion": "4"} for number in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.sft.sources = [ChatSource(str(tmp_path / "a.jsonl"))]
    (run_dir / "chat").mkdir()
    tasks.run(config, run_dir)
    chat.run(config, run_dir)
    for side, found in both(run_dir).items():
        said = [each.ids[~each.trained].tolist() for each in Conversations(run_dir / "chat" / side / "00000")]
        assert [each.ids.tolist() for each in found] == said and len(said) > 50
