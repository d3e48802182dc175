"""Tool calls: what counts as the right ones, by hand, and what answers try instead."""

from __future__ import annotations

import json
import socket
import time
import urllib.request

import pytest

from bielik_nemo.align.reward import Completion, Reward, Task, Verdict
from bielik_nemo.align.rewards.tool_call import DEEPEST, TAGS, tool_call
from bielik_nemo.data.chat_formats import TOOL_TAGS

RIGHT, WRONG, OPEN = Verdict.CORRECT, Verdict.WRONG, Verdict.UNVERIFIABLE


def tool(name: str, parameters: object) -> dict:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}


WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}, "note": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = (
    tool("weather", WEATHER),
    tool("add", {"type": "object", "properties": {"a": {"type": "number"}}}),
    tool("now", {}),
)
WANTED = {"name": "weather", "arguments": {"city": "Łódź", "days": 2}}
ADD = {"name": "add", "arguments": {"a": 1}}
NOTE = {"name": "weather", "arguments": {"city": "Łódź", "note": "<b>"}}


def call(name: str = "weather", **arguments: object) -> str:
    return tagged(json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False))


def tagged(text: str) -> str:
    return f"<tool_call>\n{text}\n</tool_call>"


GOOD = call(city="Łódź", days=2)
INSIDE = GOOD.replace("\n", "")
CASES = [
    # The call, whatever stands beside it, and its arguments' order.
    (WANTED, GOOD, RIGHT), (WANTED, f"Sprawdzam pogodę.\n{GOOD}", RIGHT), (WANTED, GOOD + "\nGotowe.", RIGHT),
    (WANTED, call(days=2, city="Łódź"), RIGHT),
    (WANTED, GOOD.replace("\n", ""), RIGHT),
    (WANTED, tagged('{"name":"weather","arguments":{"city":"\\u0141\\u00f3d\\u017a","days":2}}'), RIGHT),
    (WANTED, "Pogoda w Łodzi jest ładna.", WRONG), (WANTED, "", WRONG), (WANTED, json.dumps(WANTED), WRONG),
    (WANTED, f"```json\n{json.dumps(WANTED)}\n```", WRONG),
    # Name and values are exact; numbers by value.
    (WANTED, call("Weather", city="Łódź", days=2), WRONG), (WANTED, call("wether", city="Łódź", days=2), WRONG),
    (WANTED, call(city="Lodz", days=2), WRONG),
    (WANTED, call(city="Łódź", days=3), WRONG), (WANTED, call(city="Łódź", days=2.0), RIGHT),
    (WANTED, call(city="Łódź", days="2"), WRONG),
    (WANTED, call(city="Łódź"), WRONG), (WANTED, call(city="Łódź", days=2, note=""), WRONG),
    (WANTED, call(city="łódź", days=2), WRONG),
    (ADD, call("add", a=1), RIGHT), (ADD, call("add", a=1.0), RIGHT), (ADD, call("add", a=True), WRONG),
    (ADD, call("add", a="1"), WRONG), (ADD, call("add", a=[1]), WRONG),
    ({"name": "now", "arguments": {}}, call("now"), RIGHT),
    ({"name": "now", "arguments": {"x": {"y": [1, {"z": None}]}}}, call("now", x={"y": [1.0, {"z": None}]}), RIGHT),
    ({"name": "now", "arguments": {"x": [1, 2]}}, call("now", x=[2, 1]), WRONG),
    ({"name": "now", "arguments": {"x": None}}, call("now", x=0), WRONG),
    ({"name": "now", "arguments": {"x": False}}, call("now", x=0), WRONG),
    ({"name": "now", "arguments": {"x": False}}, call("now", x=False), RIGHT),
    # Several calls in any order; each once; no other.
    ([WANTED, ADD], GOOD + call("add", a=1), RIGHT), ([WANTED, ADD], call("add", a=1) + GOOD, RIGHT),
    ([WANTED, ADD], GOOD, WRONG), ([WANTED, WANTED], GOOD, WRONG),
    ([WANTED, WANTED], GOOD + GOOD, RIGHT), (WANTED, GOOD + GOOD, WRONG), (WANTED, GOOD + call("now"), WRONG),
    ([ADD, WANTED], GOOD + GOOD, WRONG),
    # None.
    ([], "Nie potrzebuję narzędzi.", RIGHT), ([], GOOD, WRONG), ([], "<tool_call>", WRONG),
    # Tags: a text that closes or opens one, half a pair, one in another.
    (WANTED, GOOD + "</tool_call>", WRONG), (WANTED, "<tool_call>" + GOOD, WRONG),
    (WANTED, GOOD + "<tool_call>", WRONG), (WANTED, GOOD[:-12], WRONG), (WANTED, GOOD[12:], WRONG),
    (NOTE, call(city="Łódź", note="</tool_call>"), WRONG), (NOTE, call(city="Łódź", note=INSIDE), WRONG),
    (NOTE, call(city="Łódź", note="<b>"), RIGHT),
    (WANTED, tagged(GOOD), WRONG), (WANTED, GOOD.replace("tool_call", "TOOL_CALL"), WRONG),
    (NOTE, call(city="Łódź", note=INSIDE.replace("<", "\\u003c")), WRONG),
    # JSON: two in one, a key twice, more keys, other types, words that are not JSON.
    (WANTED, tagged(json.dumps(WANTED) * 2), WRONG), (WANTED, tagged(f"[{json.dumps(WANTED)}]"), WRONG),
    (WANTED, tagged(""), WRONG), (WANTED, tagged("null"), WRONG),
    (WANTED, tagged('{"name": "now", "name": "weather", "arguments": {"city": "Łódź", "days": 2}}'), WRONG),
    (WANTED, tagged('{"name": "weather", "arguments": {"city": "Lwów", "city": "Łódź", "days": 2}}'), WRONG),
    (WANTED, tagged(json.dumps(WANTED | {"id": 1})), WRONG), (WANTED, tagged('{"name": "weather"}'), WRONG),
    (WANTED, tagged(json.dumps({"name": ["weather"], "arguments": {}})), WRONG),
    (WANTED, tagged(json.dumps({"name": "weather", "arguments": json.dumps(WANTED["arguments"])})), WRONG),
    (WANTED, tagged(str(WANTED)), WRONG),
    (ADD, tagged('{"name": "add", "arguments": {"a": NaN}}'), WRONG),
    (ADD, tagged('{"name": "add", "arguments": {"a": Infinity}}'), WRONG),
    (WANTED, tagged("__import__('os').system('true')"), WRONG), (WANTED, tagged(json.dumps(WANTED) + "# done"), WRONG),
    (WANTED, tagged(json.dumps(WANTED)[:-1]), WRONG),
    # Tasks that say too little, or whose own call does not fit.
    (None, GOOD, OPEN), ("weather", GOOD, OPEN), ({"name": "weather"}, GOOD, OPEN),
    ({"name": "weather", "arguments": {"days": 2}}, GOOD, OPEN),
    ({"name": "weather", "arguments": {"city": "Łódź", "days": 0}}, GOOD, OPEN),
    ({"name": "unknown", "arguments": {}}, GOOD, OPEN), ([None], GOOD, OPEN), ({1: 2}, GOOD, OPEN),
]  # fmt: skip


def score(text: str, wanted: object = WANTED, tools: tuple = TOOLS) -> Reward:
    return tool_call(Completion(text, tokens=10), Task("", wanted, tools=tools))


@pytest.mark.parametrize(("wanted", "text", "verdict"), CASES)
def test_by_hand(wanted, text, verdict):
    found = score(text, wanted)
    assert found.verdict is verdict
    assert found.value == (verdict is RIGHT)


def test_tags_are_those_of_the_data():
    assert TAGS == TOOL_TAGS


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (GOOD, (1, 1, 1, 1)),
        (call(city="Łódź", days=0), (1, 1, 0, 0)),  # below the schema's least
        (GOOD + call("none"), (1, 0, 0.5, 0.5)),  # one of two fits its schema, one of two is wanted
        (call("now"), (1, 0, 1, 0)),
        ("none", (1, 0, 0, 0)),
        ("<tool_call>", (0, 0, 0, 0)),
    ],
)
def test_parts(text, parts):
    assert tuple(score(text).parts[name] for name in ("parsed", "names", "schema", "arguments")) == parts


def test_without_tools_only_the_call_counts():
    assert score(call("anything", x=1), {"name": "anything", "arguments": {"x": 1}}, ()).verdict is RIGHT


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "no such type"}, {"type": 5}, {"$ref": "https://example.com/schema.json"},
        {"$ref": "file:///etc/passwd"}, {"$ref": "#/nowhere"}, {"$ref": "#"},
        {"properties": 3}, "text", {"$schema": "https://example.com/other", "$ref": "https://example.com/schema.json"},
        {"properties": {"city": {"$ref": "http://localhost:1/x"}}},
    ],
)  # fmt: skip
def test_a_broken_schema_is_unverifiable_and_nothing_is_fetched(monkeypatch, parameters):
    def reached(*arguments, **options):
        raise AssertionError("fetched")

    monkeypatch.setattr(urllib.request, "urlopen", reached)
    monkeypatch.setattr(socket.socket, "connect", reached)
    assert score(GOOD, WANTED, (tool("weather", parameters),)).verdict is OPEN


@pytest.mark.parametrize("broken", [{}, {"function": 1}, {"function": {"name": 2}}])
def test_a_broken_description_is_unverifiable(broken):
    assert score(GOOD, WANTED, (broken,)).verdict is OPEN


HOSTILE = {
    "deep lists": tagged('{"name": "weather", "arguments": {"city": ' + "[" * 500_000 + "]" * 500_000 + "}}"),
    "deep objects": tagged('{"a":' * 100_000), "just too deep": tagged("[" * (DEEPEST + 1)),
    "long text": call(city="x" * 1_000_000),
    "many keys": call(**{f"k{number}": number for number in range(100_000)}), "open tags": "<tool_call>" * 90_000,
    "closed tags": "</tool_call>" * 80_000,
    "empty calls": tagged("") * 40_000, "good calls": GOOD * 2_000, "half tags": "<tool_call" * 100_000,
    "long number": call(days=1).replace("1", "9" * 50_000),
    "large power": call(days=1).replace("1", "1e999999999"), "backslashes": tagged('{"name": "' + "\\" * 1_000_000),
    "spaces": tagged(" " * 1_000_000),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_calls_are_wrong_in_no_time(name):
    began = time.process_time()
    assert score(HOSTILE[name]).verdict is WRONG
    assert time.process_time() - began < 1
