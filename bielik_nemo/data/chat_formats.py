"""One line of JSON -> a conversation, a prompt, or one with a chosen and a rejected answer, whatever format it is in.

Conversations: `messages` ({"messages": [{"role", "content", "tool_calls"}]}), `alpaca` ({"instruction", "input",
"output", "system"}), `sharegpt` ({"conversations": [{"from", "value"}]}) and `prompt_completion` ({"prompt",
"completion"}, each text or messages; only the completion is trained). Preferences: {"prompt", "chosen", "rejected"},
each text or messages; or whole conversations in `chosen` and `rejected`, whose shared beginning is the prompt. Tasks
(see tasks.py): {"prompt"}, text or messages that wait for an answer.

Tools are written as text, whatever the template (the Hermes convention, our choice: no report gives Bielik's): a call
is `<tool_call>`, its JSON and `</tool_call>` in the assistant's turn, the offered `tools` are in the system turn, and a
result is a turn of the role `tool`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bielik_nemo.validation.ranges import hundredths

TURN_AFTER = {
    "system": ("",),
    "user": ("", "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
"""Roles, and those of the turns that each may follow; empty: it may be the first."""
ROLES = {role: role for role in TURN_AFTER}
SPEAKERS = ROLES | {"human": "user", "gpt": "assistant"}
"""Roles by their names in ShareGPT."""
TOOL_TAGS = ("<tool_call>", "</tool_call>")
_TOOLS = """\
The functions that you may call, one in a line:
<tools>
{tools}
</tools>
Write each call as
<tool_call>
{{"name": "the function's name", "arguments": {{"argument": "value"}}}}
</tool_call>"""


class BadLine(Exception):
    """Why a line cannot be used, in words that do not repeat what it says."""


class Turn(NamedTuple):
    """What one side says."""

    role: str
    content: str


class Conversation(NamedTuple):
    """Turns, the last of them the assistant's."""

    turns: list[Turn]
    trained_from: int  # number of the first turn that may be trained
    weight: int | None  # the line's own, in hundredths


class Pair(NamedTuple):
    """A prompt and two answers to it, which are not the same."""

    prompt: list[Turn]
    chosen: list[Turn]
    rejected: list[Turn]


def conversation(record: dict[str, Any], format: str = "auto") -> Conversation:
    """The conversation on a line; what is said after the last answer is left out.

    Args:
        record: the line's object.
        format: a key of `FORMATS`, or `auto`: the one whose keys it has.

    Raises:
        BadLine: it cannot be used.
    """
    if format == "auto":
        fitting = [name for name, (keys, _) in FORMATS.items() if all(key in record for key in keys)]
        if len(fitting) != 1:
            found = f"those of {' and '.join(fitting)}" if fitting else "those of no format"
            raise BadLine(f"its keys are {found}, allowed: of one of {', '.join(FORMATS)}")
        (format,) = fitting
    keys, read = FORMATS[format]
    _require(record, keys)
    given, first = read(record)
    turns = _offered(record, given)
    first += len(turns) - len(given)
    weight = record.get("weight")
    if weight is not None:
        weight = hundredths(weight)
        if weight is None:
            raise BadLine("'weight' is not in hundredths from 0.01 to 1")
    return Conversation(_ordered(turns, first), first, weight)


def pair(record: dict[str, Any]) -> Pair:
    """The prompt and both answers on a line.

    Raises:
        BadLine: it cannot be used.
    """
    _require(record, ("chosen", "rejected"))
    chosen, rejected = (_said(record[key], key, "assistant") for key in ("chosen", "rejected"))
    if "prompt" in record:
        prompt = _said(record["prompt"], "prompt", "user")
        chosen, rejected = _behind(prompt, chosen), _behind(prompt, rejected)
    else:
        alike = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
        alike = min(len(chosen), len(rejected)) if alike is None else alike
        prompt, chosen, rejected = chosen[:alike], chosen[alike:], rejected[alike:]
    if chosen == rejected:
        raise BadLine("chosen and rejected are the same")
    if not prompt:
        raise BadLine("no prompt: neither a key 'prompt' nor a turn with which chosen and rejected begin alike")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not answer or answer[0].role != "assistant":
            raise BadLine(f"{name} does not answer the prompt with an assistant turn")
    prompt = _offered(record, prompt)
    ends = [_ordered([*prompt, *answer], len(prompt))[len(prompt) :] for answer in (chosen, rejected)]
    if ends[0] == ends[1]:
        raise BadLine("chosen and rejected are the same")
    return Pair(prompt, *ends)


def asked(record: dict[str, Any]) -> list[Turn]:
    """The turns of a task, the last of which waits for an answer.

    Raises:
        BadLine: it cannot be used.
    """
    _require(record, ("prompt",))
    turns = _offered(record, _said(record["prompt"], "prompt", "user"))
    _follow(turns)
    if not turns or turns[-1].role not in TURN_AFTER["assistant"]:
        last = f"{turns[-1].role} speaks last" if turns else "no turn"
        raise BadLine(f"'prompt': {last}, allowed: {' or '.join(TURN_AFTER['assistant'])}")
    return turns


def opening(turns: Sequence[Turn]) -> str:
    """What stands before the first answer. Its hash decides what is held out, so that no prompt is on both sides."""
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    return "\n".join(turn.content for turn in turns[: answers[0] if answers else None])


def _messages(record: dict[str, Any]) -> tuple[list[Turn], int]:
    return _turns(record["messages"], "messages"), 0


def _alpaca(record: dict[str, Any]) -> tuple[list[Turn], int]:
    optional = {key: record.get(key) or "" for key in ("system", "input")}
    texts = optional | {key: record[key] for key in ("instruction", "output")}
    for key, text in texts.items():
        check_text(text, repr(key))
    system = [Turn("system", texts["system"])] if texts["system"] else []
    asked = "\n\n".join(filter(None, (texts["instruction"], texts["input"])))
    return [*system, Turn("user", asked), Turn("assistant", texts["output"])], 0


def _sharegpt(record: dict[str, Any]) -> tuple[list[Turn], int]:
    return _turns(record["conversations"], "conversations", "from", "value", SPEAKERS), 0


def _prompt_completion(record: dict[str, Any]) -> tuple[list[Turn], int]:
    prompt = _said(record["prompt"], "prompt", "user")
    return [*prompt, *_behind(prompt, _said(record["completion"], "completion", "assistant"))], len(prompt)


FORMATS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], tuple[list[Turn], int]]]] = {
    "messages": (("messages",), _messages),
    "alpaca": (("instruction", "output"), _alpaca),
    "sharegpt": (("conversations",), _sharegpt),
    "prompt_completion": (("prompt", "completion"), _prompt_completion),
}
"""The keys that a line in each format has, and what reads its turns and the number of the first that may be trained."""


def _require(record: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        if key not in record:
            raise BadLine(f"no key {key!r}")


def _said(value: Any, key: str, role: str) -> list[Turn]:
    """Text as one turn of a role, messages as they are."""
    if isinstance(value, str):
        check_text(value, repr(key))
        return [Turn(role, value)]
    return _turns(value, key)


def _behind(prompt: list[Turn], answer: list[Turn]) -> list[Turn]:
    """An answer without the prompt, where it was given as a whole conversation."""
    return answer[len(prompt) :] if answer[: len(prompt)] == prompt else answer


def _turns(
    value: Any, key: str, role_key: str = "role", text_key: str = "content", roles: dict[str, str] = ROLES
) -> list[Turn]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise BadLine(f"{key!r} is not a list of objects")
    turns = []
    for number, message in enumerate(value, start=1):
        where, role = f"{key!r}, turn {number}", message.get(role_key)
        if not isinstance(role, str) or role not in roles:
            raise BadLine(f"{where}: {role_key!r} is none of {', '.join(roles)}")
        calls, content = message.get("tool_calls") or [], message.get(text_key)
        if calls and (roles[role] != "assistant" or not isinstance(calls, list)):
            raise BadLine(f"{where}: 'tool_calls' is not a list, or not the assistant's")
        if content is None and calls:
            content = ""
        check_text(content, f"{where}: {text_key!r}")
        text = "\n".join([content] * bool(content) + [_tool_call(call, where) for call in calls])
        check_text(text, where)
        turns.append(Turn(roles[role], text))
    return turns


def _tool_call(call: Any, where: str) -> str:
    """A call as text, from {"function": {"name", "arguments"}} or without "function"; arguments may be JSON as text."""
    function = call.get("function", call) if isinstance(call, dict) else None
    name, arguments = (
        (function.get("name"), function.get("arguments", {})) if isinstance(function, dict) else (None, {})
    )
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise BadLine(f"{where}: a tool call without a name, or whose arguments are no JSON object")
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"{TOOL_TAGS[0]}\n{call}\n{TOOL_TAGS[1]}"


def _offered(record: dict[str, Any], turns: list[Turn]) -> list[Turn]:
    """The turns with the line's `tools` in the system turn, which is made where there is none."""
    tools = record.get("tools")
    if not tools:
        return turns
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadLine("'tools' is not a list of objects")
    text = _TOOLS.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    check_text(text, "'tools'")
    if turns and turns[0].role == "system":
        return [Turn("system", f"{turns[0].content}\n\n{text}"), *turns[1:]]
    return [Turn("system", text), *turns]


def check_text(text: Any, where: str) -> None:
    """Refuse what is no text, or text that has no UTF-8.

    Raises:
        BadLine: begins with `where`.
    """
    if not isinstance(text, str):
        raise BadLine(f"{where} is not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise BadLine(f"{where} is not valid Unicode: lone surrogate at character {error.start}") from None


def _follow(turns: Sequence[Turn]) -> None:
    """Refuse turns of which one may not follow the one before it."""
    before = ""
    for number, turn in enumerate(turns, start=1):
        if before not in TURN_AFTER[turn.role]:
            follows = f"{turn.role} after {before}" if before else f"{turn.role} speaks first"
            raise BadLine(f"turn {number}: {follows}")
        before = turn.role


def _ordered(turns: list[Turn], first: int) -> list[Turn]:
    """Turns up to the last answer, if every one may follow the one before it and one from `first` on is an answer."""
    _follow(turns)
    answers = [number for number, turn in enumerate(turns) if number >= first and turn.role == "assistant"]
    if not answers:
        raise BadLine("no assistant turn")
    return turns[: answers[-1] + 1]
