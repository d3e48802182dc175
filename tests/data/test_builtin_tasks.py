from __future__ import annotations

import hashlib
import json
import re

import pytest

from bielik_nemo.config_align import ChatSource
from bielik_nemo.config_grpo import TaskSource
from bielik_nemo.data import builtin_chat, chat
from bielik_nemo.data import tasks as task_data
from bielik_nemo.data.builtin import content_version
from bielik_nemo.data.builtin_tasks import INFLECTION, SETS, SIZE, conversations, tasks
from bielik_nemo.data.chat_template import ChatML
from bielik_nemo.data.tiny import byte_tokenizer
from bielik_nemo.errors import DataError

DRAWN = [name for name in SETS if name != INFLECTION]
DIGITS = re.compile(r"\d+")


def solved(prompt: str) -> str:
    """The answer, read off the prompt in another way than the one it was made in."""
    numbers = [int(number) for number in DIGITS.findall(prompt)]
    first = prompt.split()[0]
    if first in ("max", "min", "suma"):
        return str({"max": max, "min": min, "suma": sum}[first](numbers))
    if first == "sortuj":
        return "".join(map(str, sorted(numbers)))
    if first == "ile":
        _, letter, _, word = prompt.split()
        return str(sum(each == letter for each in word))
    if asked := re.search(r"[„\"](\w)[”\"].*[„\"](\w+)[”\"]", prompt):
        return str(len(asked[2]) - len(asked[2].replace(asked[1], "")))
    if any(word in prompt for word in ("większych", "greater")):
        limit = numbers.pop(0 if "większych" in prompt else -1)
        return str(sum(number > limit for number in numbers))
    places = ("pierwsza", "first"), ("druga", "second"), ("trzecia", "third"), ("czwarta", "fourth")
    for place, words in enumerate(places):
        if any(f"{word}?" in prompt for word in words):
            down = "malejąco" in prompt or "descending" in prompt
            return str(sorted(numbers)[-place - 1 if down else place])
    a, b = numbers
    if " * " in prompt or "km" in prompt:
        return str(a * b)
    return str(a - b if " - " in prompt or "kg" in prompt else a + b)


@pytest.mark.parametrize("name", DRAWN)
def test_answers_are_right_and_conversations_give_them_in_a_box(name: str):
    asked, said = list(tasks(name)), [line["messages"] for line in conversations(name)]
    assert len(asked) == len(said) == SIZE / 2
    for line in asked:
        assert line["answer"] == solved(line["prompt"]), line
        assert line["language"] == SETS[name][1]
    for question, answer in said:
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert answer["content"].endswith(rf"\boxed{{{solved(question['content'])}}}")
        assert ("boxed" in question["content"]) == (name != "builtin:drills")
    prompts = {line["prompt"] for line in asked}
    assert len(prompts) == SIZE / 2  # each once, and none is in a conversation
    assert prompts.isdisjoint(question["content"] for question, _ in said)


def test_the_same_everywhere():
    """Python's generator gives the same numbers on every machine; whoever changes a set sees it here."""
    drawn = json.dumps([list(tasks(name))[:100] for name in DRAWN], ensure_ascii=False)
    assert hashlib.sha256(drawn.encode()).hexdigest()[:16] == "2a477aa3594e6bbd"
    assert [line["prompt"] for line in tasks("builtin:drills")][:3] == ["sortuj 6 4 6", "max 3 2 5", "ile c w ccabbb"]


@pytest.mark.parametrize("name", SETS)
def test_both_kinds_of_sources_read_them(name: str):
    template = ChatML(byte_tokenizer())
    said = [line.example.prompt for line in chat.conversations(ChatSource(name), template)]
    asked = [line.example for line in task_data.tasks(TaskSource(name), template)]
    assert abs(len(said) - len(asked)) <= 1 and len(asked) >= SIZE / 2 and asked[0].prompt == asked[0].task.prompt
    assert name in builtin_chat.CONVERSATIONS and builtin_chat.files(name) == []


def test_drills_fit_into_the_context_of_the_tiny_model():
    """1,024 bytes: header and marks are 29 - 9 bytes longer than `max 3 7 5`, the longest answer is of three digits."""
    template = ChatML(byte_tokenizer())
    lines = task_data.tasks(TaskSource("builtin:drills"), template)
    assert max(len(line.example.texts[0].text.encode()) for line in lines) < 100


def test_another_name_is_refused_with_the_nearest():
    with pytest.raises(DataError, match=r"builtin:drill: no such built-in set; .*did you mean builtin:drills\?"):
        next(tasks("builtin:drill"))


def test_their_version_is_that_of_what_makes_them():
    assert len({content_version(name) for name in DRAWN}) == 1
    others = (content_version(name) for name in (INFLECTION, "builtin:polish-corrections"))
    assert content_version("builtin:drills") not in others
