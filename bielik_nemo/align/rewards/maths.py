r"""Mathematics: the answer in the last `\boxed{...}` equals the task's, as math-verify sees it.

Read of both: what `notation` says (decimal commas, spaces in numbers, signs, units), then LaTeX, as `latex` says.
Nothing an answer says is evaluated as code, what `bounds` refuses is not parsed, and what `equality` tells apart at
first sight is not compared by algebra.

- The value counts, not its form: 1/2, 0.5 and 50% are the same, {1, 2} and {2, 1} too; brackets must be of one kind.
- Decimals are compared to six places.
- Units: another one than the task's is wrong, also where the quantity is the same (5 m for 500 cm). One left out, or
  given where the task's answer has none, is right: many prompts name it. The part `unit` is 1 where both agree.
- A word is compared as a word, whatever its case.
- No box, an empty one, or one that cannot be read is wrong. A reference that cannot be read is unverifiable, unless the
  box says just the same.

Memory and time of what passes the bounds are for `scoring.Scorer` to limit, so math-verify's own signals are off.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from math_verify import verify

from bielik_nemo.align.boxed import last_boxed
from bielik_nemo.align.equality import differ
from bielik_nemo.align.latex import parsed
from bielik_nemo.align.notation import LONGEST, Written, read, word
from bielik_nemo.align.reward import Completion, Reward, Task, Verdict

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeouts are off
_SPACES = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
"""Between anything but digits, where they make no difference."""
_BRACKETS = ((r"\{", r"\}"), ("(", ")"), ("(", "]"), ("[", ")"), ("[", "]"))


def maths(completion: Completion, task: Task) -> Reward:
    """1 where the boxed answer is right, else 0; parts `boxed` and `unit`."""
    wanted = _reference(task)
    if wanted is None:
        return _reward(Verdict.UNVERIFIABLE)
    given = last_boxed(completion.text)
    if given is None or not given.strip():
        return _reward(Verdict.WRONG)
    if len(given) > LONGEST:
        return _reward(Verdict.WRONG, boxed=1.0)
    found = read(given, task.language)
    if _SPACES.sub("", given) == _SPACES.sub("", str(task.answer)):
        return _reward(Verdict.CORRECT, boxed=1.0, unit=1.0)
    unit = float(found.unit == wanted.unit)
    if found.unit and wanted.unit and not unit:
        return _reward(Verdict.WRONG, boxed=1.0)
    return _reward(_compare(found, wanted), boxed=1.0, unit=unit)


def _reward(verdict: Verdict, boxed: float = 0.0, unit: float = 0.0) -> Reward:
    return Reward(float(verdict is Verdict.CORRECT), verdict, {"boxed": boxed, "unit": unit})


def _reference(task: Task) -> Written | None:
    """The task's answer, boxed or not; None where there is none of a length that can be read."""
    answer = task.answer
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
        return None
    if not isinstance(answer, str):
        return read(repr(answer), "")
    boxed = last_boxed(answer)
    answer = (answer if boxed is None else boxed).strip()
    return read(answer, task.language) if 0 < len(answer) <= LONGEST else None


def _compare(found: Written, wanted: Written) -> Verdict:
    if found.text == wanted.text and _one_of(found.unit, wanted.unit):
        return Verdict.CORRECT
    if word(wanted.text):
        same = word(found.text) == word(wanted.text)
        if same or len(word(wanted.text)) > 1:
            return Verdict.CORRECT if same else Verdict.WRONG
    reference = parsed(wanted.text)
    if reference is None:
        return Verdict.UNVERIFIABLE
    kinds = _kind(found.text), _kind(wanted.text)
    answer = parsed(found.text)
    if answer is None or (all(kinds) and kinds[0] != kinds[1]):
        return Verdict.WRONG
    candidates = [(reference, answer)] if _one_of(found.unit, wanted.unit) else []
    if (found.unit == "%") != (wanted.unit == "%"):  # 50% is 0.5
        candidates.append((reference / 100, answer) if wanted.unit == "%" else (reference, answer / 100))
    try:
        verdicts = [_equal(*each) for each in candidates]
    except Exception:  # math-verify may raise anything of what it asks of sympy
        return Verdict.UNVERIFIABLE
    if any(verdicts):
        return Verdict.CORRECT
    return Verdict.UNVERIFIABLE if None in verdicts else Verdict.WRONG


def _equal(reference: Any, answer: Any) -> bool | None:
    """What math-verify says of two expressions that do not differ at first sight; None where it is not asked."""
    different = differ(reference, answer)
    if different is not False:
        return None if different is None else False
    return verify(reference, answer, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)


def _one_of(found: str, wanted: str) -> bool:
    return not found or not wanted or found == wanted


def _kind(text: str) -> tuple[str, str] | None:
    """The brackets around a list, set or interval."""
    return next((each for each in _BRACKETS if text.startswith(each[0]) and text.endswith(each[1])), None)
