"""Tool calls: the answer makes the calls that the task names, no other, with just their arguments.

A call is `<tool_call>`, one JSON object {"name": ..., "arguments": {...}} and `</tool_call>`; text may stand beside it.
`task.answer` is one call or a list of them, whose order does not count; an empty list asks for none. Arguments are also
held against the JSON schema of the function among `task.tools`.

- Values must be the same: 1 and 1.0 are, "1" and 1, or true and 1, are not.
- Wrong are: a tag without its other half, or within a call (a text that closes the tag cuts its JSON), anything but one
  object between the tags, a key twice, a key beside the two, NaN, a function that is not offered, a call too many.
- Unverifiable are tasks without calls, whose own calls break their schema, or whose schema is broken or refers to
  another document: nothing is ever fetched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from bielik_nemo.align.reward import Completion, Reward, Task, Verdict

TAGS = ("<tool_call>", "</tool_call>")
LONGEST = 100_000
"""Characters of a call."""
DEEPEST = 50
"""Brackets of a call in one another."""


class _BadTask(Exception):
    """The task's calls or schemas cannot be used."""


def tool_call(completion: Completion, task: Task) -> Reward:
    """1 where the calls are the task's, else 0.

    Parts, each 0 to 1: `parsed`, whether every call can be read; `names`, whether the functions are the right ones;
    `schema`, share of the calls whose arguments fit their function's schema; `arguments`, share of the calls, made or
    wanted, that have their like on the other side.
    """
    parts = dict.fromkeys(("parsed", "names", "schema", "arguments"), 0.0)
    try:
        wanted = _wanted(task.answer)
        schemas = _schemas(task.tools)
        if not all(_fits(call, schemas) for call in wanted):
            raise _BadTask
    except (_BadTask, SchemaError, Unresolvable, RecursionError):
        return Reward(0.0, Verdict.UNVERIFIABLE, parts)
    try:
        made = [_call(text) for text in _between_tags(completion.text)]
    except (ValueError, RecursionError):
        return Reward(0.0, Verdict.WRONG, parts)
    left = list(made)
    for call in wanted:
        like = next((each for each in left if same(each, call)), None)
        if like is not None:
            left.remove(like)
    paired = len(made) - len(left)
    right = paired == len(made) == len(wanted)
    parts["parsed"] = 1.0
    parts["names"] = float(sorted(call["name"] for call in made) == sorted(call["name"] for call in wanted))
    try:
        parts["schema"] = sum(_fits(call, schemas) for call in made) / len(made) if made else float(right)
    except (Unresolvable, RecursionError):  # behind a branch that the task's own calls do not take
        parts["schema"] = 0.0
    parts["arguments"] = paired / max(len(made), len(wanted), 1) if made or wanted else 1.0
    return Reward(float(right), Verdict.CORRECT if right else Verdict.WRONG, parts)


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same; numbers by value, and truth is no number."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def _wanted(answer: Any) -> list[dict[str, Any]]:
    calls = [answer] if isinstance(answer, Mapping) else answer
    if not isinstance(calls, (list, tuple)):
        raise _BadTask
    # By way of text, so that they are what JSON can say, and nothing else.
    try:
        return [_call(json.dumps(call)) for call in calls]
    except (ValueError, TypeError) as error:
        raise _BadTask from error


def _between_tags(text: str) -> Iterator[str]:
    """What stands between each pair of tags, which may not be in one another."""
    opening, closing = TAGS
    before, *rest = text.split(opening)
    if closing in before:
        raise ValueError("closed before it is opened")
    for part in rest:
        inside, *after = part.split(closing)
        if len(after) != 1:
            raise ValueError("not closed, or closed twice")
        yield inside


def _call(text: str) -> dict[str, Any]:
    """One call from its JSON.

    Raises:
        ValueError: it is not one.
    """
    if len(text) > LONGEST or _depth(text) > DEEPEST:
        raise ValueError("more than a call")
    call = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_no_constant)
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
        raise ValueError("not a name and arguments")
    if not isinstance(call["name"], str) or not isinstance(call["arguments"], dict):
        raise ValueError("name or arguments are of another type")
    return call


def _depth(text: str) -> int:
    """Most brackets in one another, those in strings counted as well."""
    depth = most = 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        most = max(most, depth)
    return most


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _schemas(tools: Sequence[Mapping[str, Any]]) -> dict[str, Draft202012Validator] | None:
    """By name, what checks the arguments of each function that is offered; None where the task does not say."""
    checks = {}
    for tool in tools:
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise _BadTask
        schema = function.get("parameters") or {}
        validator = validator_for(schema, default=Draft202012Validator)
        validator.check_schema(schema)
        # A registry of one's own fetches nothing; without one, jsonschema would open the addresses of references.
        checks[function["name"]] = validator(schema, registry=Registry())
    return checks or None


def _fits(call: dict[str, Any], schemas: dict[str, Draft202012Validator] | None) -> bool:
    return schemas is None or (call["name"] in schemas and schemas[call["name"]].is_valid(call["arguments"]))
