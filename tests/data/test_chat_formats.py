"""Lines in every format -> turns; and what makes a line bad, in words that do not repeat it."""

from __future__ import annotations

from typing import Any

import pytest

from bielik_nemo.data.chat_formats import FORMATS, BadLine, Turn, asked, conversation, opening, pair
from bielik_nemo.validation.ranges import CHAT_FORMATS

ASKED, ANSWERED = Turn("user", "Ile?"), Turn("assistant", "Dwa 🙂")
MESSAGES = [turn._asdict() for turn in (ASKED, ANSWERED)]
SYSTEM = {"role": "system", "content": "Krótko."}
CALL = {"name": "pogoda", "arguments": {"miasto": "Łódź"}}
CALL_TEXT = '<tool_call>\n{"name": "pogoda", "arguments": {"miasto": "Łódź"}}\n</tool_call>'


def messages(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def test_formats_have_the_names_that_the_configuration_allows():
    assert CHAT_FORMATS == ("auto", *FORMATS)


@pytest.mark.parametrize(
    "record, turns, trained_from",
    [
        ({"messages": MESSAGES}, [ASKED, ANSWERED], 0),
        ({"instruction": "Ile?", "output": "Dwa 🙂"}, [ASKED, ANSWERED], 0),
        ({"instruction": "Ile?", "input": "", "output": "", "system": None}, [ASKED, Turn("assistant", "")], 0),
        (
            {"instruction": "Ile?", "input": "1 + 1", "output": "Dwa 🙂", "system": "Krótko."},
            [Turn("system", "Krótko."), Turn("user", "Ile?\n\n1 + 1"), ANSWERED],
            0,
        ),
        ({"conversations": [{"from": "human", "value": "Ile?"}, {"from": "gpt", "value": "Dwa 🙂"}]}, None, 0),
        ({"conversations": [{"from": "user", "value": "Ile?"}, {"from": "assistant", "value": "Dwa 🙂"}]}, None, 0),
        ({"prompt": "Ile?", "completion": "Dwa 🙂"}, [ASKED, ANSWERED], 1),
        ({"prompt": [SYSTEM, *MESSAGES[:1]], "completion": "Dwa 🙂"}, [Turn(**SYSTEM), ASKED, ANSWERED], 2),
        ({"prompt": "Ile?", "completion": MESSAGES}, [ASKED, ANSWERED], 1),  # the prompt once more
        ({"prompt": [*MESSAGES, *MESSAGES[:1]], "completion": MESSAGES[1:]}, [ASKED, ANSWERED] * 2, 3),
    ],
)
def test_formats(record: dict[str, Any], turns: list[Turn] | None, trained_from: int):
    found = conversation(record | {"id": 7, "source": "x"})
    assert found == (turns or [ASKED, ANSWERED], trained_from, None)
    (name,) = [name for name, (keys, _) in FORMATS.items() if set(keys) <= set(record)]
    assert conversation(record, name) == found


def test_a_format_by_name_reads_lines_that_have_other_keys_too():
    record = {"messages": MESSAGES, "prompt": "x", "completion": "y"}
    assert conversation(record, "messages").turns == [ASKED, ANSWERED]
    assert conversation(record, "prompt_completion").turns == [Turn("user", "x"), Turn("assistant", "y")]


@pytest.mark.parametrize("weight, found", [(0.01, 1), (0.7, 70), (1, 100), (0.29, 29), (None, None)])
def test_weights_are_hundredths(weight: float | None, found: int | None):
    """0.29 * 100 is 28.999999999999996 in float64."""
    assert conversation({"messages": MESSAGES, "weight": weight}).weight == found


@pytest.mark.parametrize("weight", [0, 0.001, 0.015, 1.01, -1, True, "1", [1], float("nan"), float("inf")])
def test_other_weights_are_bad(weight: object):
    with pytest.raises(BadLine, match=r"^'weight' is not in hundredths from 0\.01 to 1$"):
        conversation({"messages": MESSAGES, "weight": weight})


def test_what_follows_the_last_answer_is_left_out():
    assert conversation({"messages": [*MESSAGES, *MESSAGES[:1]]}).turns == [ASKED, ANSWERED]


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {"id": "1", "type": "function", "function": CALL},
        {"function": CALL | {"arguments": '{"miasto": "\\u0141ódź"}'}},
    ],
)
def test_tools(call: dict[str, Any]):
    """Two calls in one turn, behind what it says; both results; the offer in the system turn."""
    turns = [
        {"role": "user", "content": "Ciepło?"},
        {"role": "assistant", "content": "Sprawdzam.", "tool_calls": [call, call]},
        {"role": "tool", "content": "12°"},
        {"role": "tool", "content": "13°"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "14°"},
        {"role": "assistant", "content": "Nie."},
    ]
    tools = [{"name": "pogoda", "description": "Jaka jest pogoda"}, {"name": "b"}]
    found = conversation({"messages": turns, "tools": tools}).turns
    assert [turn.role for turn in found[1:]] == [turn["role"] for turn in turns]
    assert found[2].content == f"Sprawdzam.\n{CALL_TEXT}\n{CALL_TEXT}"
    assert found[5].content == CALL_TEXT
    assert found[0].role == "system"
    offer = '\n<tools>\n{"name": "pogoda", "description": "Jaka jest pogoda"}\n{"name": "b"}\n</tools>\n'
    assert offer in found[0].content
    with_system = conversation({"messages": [SYSTEM, *turns], "tools": tools}).turns
    assert with_system[0].content == f"Krótko.\n\n{found[0].content}"
    assert with_system[1:] == found[1:]


def test_offered_tools_stand_before_the_turns_that_are_trained():
    found = conversation({"prompt": "Ile?", "completion": "Dwa 🙂", "tools": [CALL]})
    assert [turn.role for turn in found.turns] == ["system", "user", "assistant"] and found.trained_from == 2
    found = pair({"prompt": "Ile?", "chosen": "2", "rejected": "3", "tools": [CALL]})
    assert [turn.role for turn in found.prompt] == ["system", "user"]


@pytest.mark.parametrize(
    "record, why",
    [
        ({}, "its keys are those of no format"),
        ({"text": "Sekret"}, "its keys are those of no format"),
        ({"prompt": "Sekret", "chosen": "a", "rejected": "b"}, "its keys are those of no format"),
        (
            {"messages": MESSAGES, "instruction": "Sekret", "output": ""},
            "its keys are those of messages and alpaca, allowed: of one of messages, alpaca, sharegpt, prompt_",
        ),
        ({"messages": "Sekret"}, "'messages' is not a list of objects"),
        ({"messages": ["Sekret"]}, "'messages' is not a list of objects"),
        ({"messages": []}, "no assistant turn"),
        ({"messages": MESSAGES[:1]}, "no assistant turn"),
        ({"messages": messages(("Sekret", ""))}, "'messages', turn 1: 'role' is none of system, user, assistant, tool"),
        ({"messages": [{"content": "Sekret"}]}, "turn 1: 'role' is none of"),
        ({"messages": [{"role": ["Sekret"], "content": ""}]}, "turn 1: 'role' is none of"),
        ({"messages": [*MESSAGES[:1], {"role": "assistant"}]}, "'messages', turn 2: 'content' is not text"),
        ({"messages": [{"role": "user", "content": ["Sekret"]}]}, "turn 1: 'content' is not text"),
        ({"messages": messages(("assistant", "Sekret"))}, "turn 1: assistant speaks first"),
        ({"messages": messages(("tool", "Sekret"))}, "turn 1: tool speaks first"),
        ({"messages": [SYSTEM, *MESSAGES[1:]]}, "turn 2: assistant after system"),
        ({"messages": [*MESSAGES, SYSTEM]}, "turn 3: system after assistant"),
        ({"messages": [*MESSAGES[:1], *MESSAGES]}, "turn 2: user after user"),
        ({"messages": [*MESSAGES, *MESSAGES[1:]]}, "turn 3: assistant after assistant"),
        ({"messages": [*MESSAGES[:1], {"role": "tool", "content": ""}]}, "turn 2: tool after user"),
        (
            {"messages": messages(("user", "Sekret \ud83d"), ("assistant", ""))},
            "'messages', turn 1: 'content' is not valid Unicode: lone surrogate at character 7",
        ),
        ({"messages": [{"role": "user", "content": "", "tool_calls": [CALL]}]}, "'tool_calls' is not a list, or not"),
        (
            {"messages": [*MESSAGES[:1], {"role": "assistant", "tool_calls": [{"name": "Sekret", "arguments": "{"}]}]},
            "turn 2: a tool call without a name, or whose arguments are no JSON object",
        ),
        ({"messages": [*MESSAGES[:1], {"role": "assistant", "tool_calls": [{}]}]}, "a tool call without a name"),
        ({"messages": [*MESSAGES[:1], {"role": "assistant", "tool_calls": ["x"]}]}, "a tool call without a name"),
        (
            {"messages": [*MESSAGES[:1], {"role": "assistant", "tool_calls": [CALL | {"arguments": {"a": "\udc00"}}]}]},
            "turn 2 is not valid Unicode",
        ),
        ({"messages": MESSAGES, "tools": "Sekret"}, "'tools' is not a list of objects"),
        ({"messages": MESSAGES, "tools": [{"a": "\udc00"}]}, "'tools' is not valid Unicode"),
        ({"instruction": ["Sekret"], "output": "a"}, "'instruction' is not text"),
        ({"instruction": "Sekret", "input": 3, "output": "a"}, "'input' is not text"),
        ({"instruction": "Sekret", "output": None}, "'output' is not text"),
        (
            {"conversations": [{"from": "bot", "value": "Sekret"}]},
            "'from' is none of system, user, assistant, tool, human",
        ),
        ({"conversations": [{"from": "human", "content": "Sekret"}]}, "turn 1: 'value' is not text"),
        ({"prompt": "Sekret", "completion": []}, "no assistant turn"),
        ({"prompt": MESSAGES[1:], "completion": "Sekret"}, "turn 1: assistant speaks first"),
        ({"prompt": 3, "completion": "Sekret"}, "'prompt' is not a list of objects"),
    ],
)
def test_bad_lines(record: dict[str, Any], why: str):
    with pytest.raises(BadLine) as caught:
        conversation(record)
    assert why in str(caught.value)
    assert "Sekret" not in str(caught.value)


def test_a_format_whose_keys_a_line_lacks():
    with pytest.raises(BadLine, match=r"^no key 'messages'$"):
        conversation({"instruction": "a", "output": "b"}, "messages")


@pytest.mark.parametrize(
    "record, prompt",
    [
        ({"prompt": "Ile?", "chosen": "2", "rejected": "3"}, [ASKED]),
        ({"prompt": MESSAGES[:1], "chosen": "2", "rejected": messages(("assistant", "3"))}, [ASKED]),
        ({"prompt": [*MESSAGES, *MESSAGES[:1]], "chosen": "2", "rejected": "3"}, [ASKED, ANSWERED, ASKED]),
        (  # whole conversations beside the prompt, and without it
            {
                "prompt": "Ile?",
                "chosen": messages(("user", "Ile?"), ("assistant", "2")),
                "rejected": messages(("user", "Ile?"), ("assistant", "3")),
            },
            [ASKED],
        ),
        (
            {
                "chosen": [*MESSAGES, *messages(("user", "Na pewno?"), ("assistant", "2"), ("user", "Dzięki"))],
                "rejected": [*MESSAGES, *messages(("user", "Na pewno?"), ("assistant", "3"))],
            },
            [ASKED, ANSWERED, Turn("user", "Na pewno?")],
        ),
    ],
)
def test_pairs(record: dict[str, Any], prompt: list[Turn]):
    assert pair(record) == (prompt, [Turn("assistant", "2")], [Turn("assistant", "3")])


def test_an_answer_of_several_turns():
    more = messages(("assistant", CALL_TEXT), ("tool", "2"), ("assistant", "3"))
    assert len(pair({"prompt": "a", "chosen": more, "rejected": ""}).chosen) == 3


@pytest.mark.parametrize(
    "record, why",
    [
        ({"prompt": "Sekret", "chosen": "a"}, "no key 'rejected'"),
        ({"prompt": "Sekret", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ({"prompt": "Sekret", "chosen": 1, "rejected": "a"}, "'chosen' is not a list of objects"),
        ({"chosen": "Sekret", "rejected": "a"}, "no prompt: neither a key 'prompt' nor a turn"),
        ({"chosen": MESSAGES, "rejected": MESSAGES}, "chosen and rejected are the same"),
        ({"chosen": MESSAGES, "rejected": MESSAGES[:1]}, "rejected does not answer the prompt with an assistant turn"),
        ({"prompt": "x", "chosen": MESSAGES, "rejected": "a"}, "chosen does not answer the prompt"),
        ({"prompt": "x", "chosen": [], "rejected": "a"}, "chosen does not answer the prompt"),
        (
            {"prompt": "x", "chosen": "a", "rejected": messages(("assistant", "a"), ("user", "Sekret"))},
            "chosen and rejected are the same",
        ),
        ({"prompt": MESSAGES, "chosen": "a", "rejected": "b"}, "turn 3: assistant after assistant"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "no prompt"),
    ],
)
def test_bad_pairs(record: dict[str, Any], why: str):
    with pytest.raises(BadLine) as caught:
        pair(record)
    assert why in str(caught.value)
    assert "Sekret" not in str(caught.value)


@pytest.mark.parametrize(
    "record, turns",
    [
        ({"prompt": "Ile?"}, [ASKED]),
        ({"prompt": [SYSTEM, *MESSAGES[:1]]}, [Turn("system", "Krótko."), ASKED]),
        ({"prompt": [*MESSAGES, *MESSAGES[:1]]}, [ASKED, ANSWERED, ASKED]),
        (
            {"prompt": messages(("user", "Ile?"), ("assistant", CALL_TEXT), ("tool", "2"))},
            [ASKED, Turn("assistant", CALL_TEXT), Turn("tool", "2")],
        ),
    ],
)
def test_turns_that_wait_for_an_answer(record: dict[str, Any], turns: list[Turn]):
    assert asked(record) == turns


def test_tools_are_offered_to_tasks_as_in_conversations():
    tools = {"tools": [{"name": "pogoda"}]}
    turns = asked({"prompt": "Ile?"} | tools)
    assert turns == conversation({"messages": MESSAGES} | tools).turns[:-1] and "pogoda" in turns[0].content


@pytest.mark.parametrize(
    "record, why",
    [
        ({"question": "Sekret"}, "no key 'prompt'"),
        ({"prompt": 3}, "'prompt' is not a list of objects"),
        ({"prompt": []}, "'prompt': no turn, allowed: user or tool"),
        ({"prompt": MESSAGES}, "'prompt': assistant speaks last, allowed: user or tool"),
        ({"prompt": [SYSTEM]}, "'prompt': system speaks last, allowed: user or tool"),
        ({"prompt": [MESSAGES[0], MESSAGES[0]]}, "turn 2: user after user"),
        ({"prompt": "Ile?", "tools": "Sekret"}, "'tools' is not a list of objects"),
    ],
)
def test_bad_tasks(record: dict[str, Any], why: str):
    with pytest.raises(BadLine) as caught:
        asked(record)
    assert str(caught.value) == why


def test_the_opening_is_what_stands_before_the_first_answer():
    assert opening([Turn(**SYSTEM), ASKED, ANSWERED, Turn("user", "x"), ANSWERED]) == "Krótko.\nIle?"
    assert opening([ASKED]) == "Ile?"
