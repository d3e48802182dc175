r"""Single choice: the option that an answer ends with is the task's.

What is read, the first of these that names an option:

1. the last `\boxed{...}`: `\boxed{D}`, `\boxed{\text{(D)}}`, `\boxed{D) Warsaw}`;
2. the last statement: the option that follows "odpowiedź", "odp.", "wybieram", "answer" or "choose", with nothing but
   words such as "to", "jest", "is", "poprawna", "correct" or "option" between them; on its line or the next one;
3. the last line, when it is the option alone, or begins with it (`B) ...`) and no other line begins with another.

An option is a letter, A to H or up to the task's, by itself, maybe in brackets, quotes or asterisks. A small one must
be marked: `b)`, `(b)`, `**b**`, or alone; "a", "i" and "o" are Polish words. Options joined by a comma, a stroke, or
"and", "or" and their like are two, and two are wrong. An option that is ruled out ("nie A") is not one.
"""

# ruff: noqa: RUF001 (signs that look alike)
from __future__ import annotations

import re

from bielik_nemo.align.boxed import last_boxed
from bielik_nemo.align.reward import Completion, Reward, Task, Verdict

_LAST = "H"
_WINDOW = 120
"""Characters behind a word such as "answer" in which the option must stand."""
_END = 20_000
"""Characters at the end of an answer in which statements and lines are looked for."""
_OPEN, _CLOSE = r"[\s(\[{*_\"'„“«:=$]*", r"[)\]}.:*_\"'”»$]*"
_LETTER = re.compile(rf"({_OPEN})([A-Za-z])(?![\w'’])({_CLOSE})")
_JOINED = re.compile(r"\s*(?:,|/|;|&|\b(?:i|lub|oraz|albo|czy|and|or)\b)(?=\W|[A-Za-z]\b)")
_SAYS = re.compile(r"(?i)\b(?:odpowied[źz]\w{0,3}|odp\b|wybieram|answer|choose)")
_FILLER = re.compile(
    r"(?i)[\s:=*_.,\-–—>]*(?:\\boxed|\\text|to|jest|brzmi|będzie|końcowa|ostateczna|poprawna|prawidłowa|właściwa|opcja|opcję"
    r"|wariant|litera|is|the|final|correct|right|option|letter|choice|number)\b"
)


def choice(completion: Completion, task: Task) -> Reward:
    """1 where the option is the task's, else 0; parts `options`, how many were named, and `boxed`."""
    wanted = _option(task.answer)
    if not wanted:
        return Reward(0.0, Verdict.UNVERIFIABLE, {"options": 0.0, "boxed": 0.0})
    boxed = last_boxed(completion.text)
    end, last = completion.text[-_END:], max(_LAST, wanted)
    named = _named(_plain(boxed[:_WINDOW]), last, whole=True) if boxed else ""
    parts = {"boxed": float(bool(named))}
    named = named or _stated(end, last) or _last_line(end, last)
    verdict = Verdict.CORRECT if named == wanted else Verdict.WRONG
    return Reward(float(named == wanted), verdict, {"options": float(len(named)), **parts})


def _option(answer: object) -> str:
    """The letter of the task's answer; empty where it is not one."""
    if not isinstance(answer, str) or len(answer) > _WINDOW:
        return ""
    named = _named(_plain(last_boxed(answer) or answer), "Z", whole=True)
    return named if len(named) == 1 else ""


def _plain(text: str) -> str:
    return re.sub(r"\\(?:text|textbf|mathrm|mathbf) *", "", text).strip()


def _named(text: str, last: str, whole: bool = False) -> str:
    """The different options with which a text begins; with `whole`, it must end there, or go on as an option's text."""
    named, position = "", 0
    while found := _LETTER.match(text, position):
        before, letter, after = found.groups()
        alone = not text[found.end() :].strip() and not text[: found.start(2)].strip("([{*_\"'„ ")
        if letter.upper() > last or (letter.islower() and not (set(before + after) & set("()*]") or alone)):
            break
        rest = text[found.end() :].strip()
        if whole and rest and not after.strip("*_\"'”») ") and ")" not in after and not _JOINED.match(rest):
            return ""
        named += "" if letter.upper() in named else letter.upper()
        joined = _JOINED.match(text, found.end())
        if not joined:
            break
        position = joined.end()
    return named


def _stated(text: str, last: str) -> str:
    for said in reversed([found.end() for found in _SAYS.finditer(text)]):
        window = text[said : said + _WINDOW].lstrip(" .:*_\n")
        while filler := _FILLER.match(window):
            window = window[filler.end() :]
        if named := _named(window.lstrip(" \t\n:=-–—>*_.,"), last):
            return named
    return ""


def _last_line(text: str, last: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    alone = _named(lines[-1][:_WINDOW], last, whole=True)
    if not alone or len(lines[-1].strip("()[]*_.:\"' ")) == 1 or len(alone) > 1:
        return alone
    others = {_named(line[:_WINDOW], last, whole=True) for line in lines[:-1]} - {"", alone}
    return "" if others else alone
