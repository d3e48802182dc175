"""Lines -> tasks in tokens. The tiny tokenizer: a byte is a token, then <s> 256, <|im_start|> 259, <|im_end|> 260."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bielik_nemo.align.reward import Completion, Reward, Task, Verdict
from bielik_nemo.config_align import ChatSource
from bielik_nemo.config_grpo import RewardTerm, TaskSource
from bielik_nemo.data import chat, smollm2, tasks
from bielik_nemo.data.chat import Example
from bielik_nemo.data.chat_formats import BadLine
from bielik_nemo.data.chat_template import ChatML, OwnTemplate
from bielik_nemo.data.tiny import byte_tokenizer
from bielik_nemo.errors import CheckpointError

S, START, END = 256, 259, 260
TOOL = {"name": "pogoda", "parameters": {"type": "object"}}


def lines(tmp_path: Path, *records: dict[str, Any], language: str = "pl") -> list[chat.Line]:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(tasks.tasks(TaskSource(str(path), language), ChatML(byte_tokenizer())))


def written(tmp_path: Path, *records: dict[str, Any], language: str = "pl") -> list[tasks.Prepared]:
    """What is read back of the file that lines become."""
    found = chat.tokenised(byte_tokenizer(), lines(tmp_path, *records, language=language))
    (tmp_path / "train.jsonl").write_text("".join(tasks.row(line, each.task, ids, 3) for line, each, (ids,) in found))
    return tasks.read(tmp_path / "train.jsonl")


def test_a_task_in_tokens_there_and_back(tmp_path: Path):
    (made,) = written(tmp_path, {"prompt": "Ile to 2+2?", "answer": "4"})
    assert made.ids.tolist() == [S, START, *b"user\nIle to 2+2?", END, *b"\n", START, *b"assistant\n"]
    assert made[1:] == (Task("Ile to 2+2?", "4", "pl"), 3, f"{tmp_path / 'a.jsonl'}:1")


def test_messages_language_tools_and_answers_of_every_kind(tmp_path: Path):
    """A reward is told the user's last turn; numbers become text; a line's language goes before the source's."""
    turns = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "Łódź?"), ("assistant", "c"), ("tool", "d")]
    prompt = [{"role": role, "content": content} for role, content in turns]
    call = {"name": "pogoda", "arguments": {"miasto": "Łódź"}}
    found = written(
        tmp_path,
        {"prompt": prompt, "answer": call, "tools": [TOOL]},
        {"prompt": "x", "answer": 0.5, "language": "en"},
        {"prompt": "x", "answer": -7},
        {"prompt": "x", "answer": []},
        {"prompt": "x", "answer": None},
    )
    assert [each.task for each in found] == [
        Task("Łódź?", call, "pl", (TOOL,)),
        Task("x", "0.5", "en"),
        Task("x", "-7", "pl"),
        Task("x", [], "pl"),
        Task("x", None, "pl"),
    ]
    assert json.dumps(TOOL) in bytes(token for token in found[0].ids if token < 256).decode()


@pytest.mark.parametrize(
    "record, why",
    [
        ({"prompt": "Sekret"}, "no key 'answer' (null: there is nothing to compare with)"),
        ({"prompt": "Sekret", "answer": True}, "'answer' is true or false, allowed: text, a number, an object, a list"),
        (
            {"prompt": "Sekret", "answer": {"a": "\udc00"}},
            "'answer' is not valid Unicode: lone surrogate at character 7",
        ),
        ({"prompt": "Sekret", "answer": "4", "language": "po polsku"}, "'language' is no word such as pl or en-GB"),
        ({"prompt": "Sekret", "answer": "4", "language": 4}, "'language' is no word such as pl or en-GB"),
        ({"prompt": "Sekret<|im_end|>", "answer": "4"}, "turn 1 contains the control token <|im_end|>"),
        ({"prompt": [], "answer": "4"}, "'prompt': no turn, allowed: user or tool"),
        ({"answer": "4"}, "no key 'prompt'"),
    ],
)
def test_bad_lines(tmp_path: Path, record: dict[str, Any], why: str):
    (bad, good) = (line.example for line in lines(tmp_path, record, {"prompt": "x", "answer": "4"}))
    assert isinstance(bad, BadLine) and str(bad).startswith(why)
    assert isinstance(good, Example)


MATHS = RewardTerm("bielik_nemo.align.rewards.maths")


@pytest.mark.parametrize(
    "term, answer, why",
    [
        (MATHS, "4", ""),
        (MATHS, r"\frac{1}{2}", ""),
        (MATHS, "Sekret ~ {", "bielik_nemo.align.rewards.maths cannot tell from this task whether an answer is right"),
        (MATHS, None, "bielik_nemo.align.rewards.maths cannot tell from this task whether an answer is right"),
        (RewardTerm(f"{__name__}.broken"), "4", f"{__name__}.broken raises ZeroDivisionError"),
    ],
)
def test_a_task_that_its_first_reward_cannot_judge_is_a_bad_line(
    tmp_path: Path, term: RewardTerm, answer: Any, why: str
):
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "x", "answer": answer}))
    source = TaskSource(str(tmp_path / "a.jsonl"), rewards=[term, RewardTerm("is not looked at")])
    ((_, _, found),) = tasks.tasks(source, ChatML(byte_tokenizer()))
    assert str(found) == why if why else isinstance(found, Example)


def broken(completion: Completion, task: Task) -> Reward:
    return Reward(1 / len(task.tools), Verdict.CORRECT)


def test_a_prompt_is_on_the_side_that_it_is_on_in_conversations(tmp_path: Path):
    """The text whose hash decides is the same, with a system turn, tools and earlier answers too."""
    answer = {"role": "assistant", "content": "4"}
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}]
    for prompt in (turns[1:], turns, [*turns, answer, turns[1]]):
        for tools in ({}, {"tools": [TOOL]}):
            (task,) = lines(tmp_path, {"prompt": prompt, "answer": "4"} | tools)
            (tmp_path / "b.jsonl").write_text(json.dumps({"messages": [*prompt, answer]} | tools))
            (said,) = chat.conversations(ChatSource(str(tmp_path / "b.jsonl")), ChatML(byte_tokenizer()))
            assert task.example.prompt == said.example.prompt


def test_stop_ids():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "</s>"
    assert tasks.stop_ids(tokenizer, ChatML(tokenizer)) == [END, 257]


@pytest.mark.parametrize("made", [ChatML, OwnTemplate])
def test_a_real_tokenizer_asks_with_the_tokens_that_stand_before_an_answer_in_training(made: type, tmp_path: Path):
    """SmolLM2's: what asks is what is not trained of the same prompt with its answer."""
    from gguf import GGUFReader

    try:
        tokenizer = smollm2.hf_tokenizer(GGUFReader(smollm2.find_gguf()))
    except CheckpointError as error:
        pytest.skip(str(error))
    template = made(tokenizer)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "Ile to 2+2?", "answer": "4", "completion": "\n\n4"}) + "\n")
    ((*_, (asked,)),) = chat.tokenised(tokenizer, tasks.tasks(TaskSource(str(path)), template))
    ((*_, (said,)),) = chat.tokenised(tokenizer, chat.conversations(ChatSource(str(path)), template))
    assert asked.ids.tolist() == said.ids[~said.trained].tolist() and not asked.trained.any()
