r"""One notation for answers that people and models write in many: spaces, signs, decimal commas, units, words.

`read` turns `$1\,000{,}5\ \text{cm}$` in a Polish task into the text `1000.5` and the unit `cm`. Numbers, by the
language that the task is in:

- Decimal comma (all languages but those of `POINT`): 3,14 is 3.14; 1 000,5 and 1.000,5 are 1000.5; 1.000.000 and
  1,000,000 are a million. A single point is a decimal point, which models write in any language: 1.000 is 1.
- Decimal point: 1,234.5 is 1234.5; 3,14 stays a list of two.
- Within brackets a comma separates, (1,2) and \{1,2\} are lists, unless semicolons do: (1,5; 2). A comma with a space
  separates everywhere.

Every pattern here is linear, or applied to a text of `LONGEST` characters at most.
"""

# ruff: noqa: RUF001 (signs that look alike are what this is about)
from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

LONGEST = 300
"""Characters of an answer that is looked at; a final answer is a line."""
POINT = ("", "en", "he", "hi", "ja", "ko", "th", "zh")
"""Languages that write a decimal point; empty: a task without a language."""

_SIGNS = str.maketrans({
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/", "π": r"\pi ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ",
    "∈": r"\in ", "∅": r"\emptyset ", "√": r"\sqrt ", "°": r"^\circ ", "²": "^2", "³": "^3", "½": r"\frac{1}{2}",
    "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⟨": r"\langle ", "⟩": r"\rangle ", "ℝ": r"\mathbb{R}", "µ": "μ",
    "\n": " ", "\t": " ", "\u00a0": " ", "\u2007": " ", "\u2009": " ", "\u200a": " ", "\u202f": " ", "\u2060": "",
})  # fmt: skip
_REPLACED = tuple((re.compile(pattern), new) for pattern, new in (
    (r"\\!|\\(?:left|right|displaystyle|bigl?|bigr)(?![A-Za-z])", ""),
    (r"\\[,;: ]|~|\\q?quad(?![A-Za-z])", " "),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\\varnothing", r"\\emptyset"),
    (r"\\(?:text(?:rm|bf|it|normal)?|math(?:rm|bf|it)|mbox|operatorname)\s*\{([^{}]*)\}", r"\\text{\1}"),
    (r"\\text\{ *c?tg *\}|\\c?tg(?![A-Za-z])", lambda m: r"\cot " if "ctg" in m[0] else r"\tan "),
    (r"\\frac\{ *\\text\{([^{}]*)\} *\}\{ *\\text\{([^{}]*)\} *\}", r"\\text{\1/\2}"),
    (r"\} */ *\\text\{", "/"),  # \text{km}/\text{h}
    (r"\^ *\{ *\\circ *\}", r"^\\circ"),
    (r"(\d) *[eE]([+-]?\d{1,2})(?![\w.])", r"\1\\cdot 10^{\2}"),
    (r"\\text\{[ ,]*(?:lub|i|oraz|albo|or|and)[ ,]*\}|\\lor(?![A-Za-z])|\\vee(?![A-Za-z])", ", "),
    (r"(?<=[\w})\]]),? +(?:lub|i|oraz|albo|or|and) +(?=-?[\w\\(])", ", "),
    (r"(?<![\d.,/])(\d{1,3}) (\d{1,3})/(\d{1,3})(?![\d.,])", r"\1\\frac{\2}{\3}"),  # 2 1/2
    (r"(?<![\d.,])\d{1,3}(?: \d{3})+(?!\d)", lambda m: m[0].replace(" ", "")),
    (r" +", " "),
))  # fmt: skip
_FUNCTION = re.compile(r"\\(?:sin|cos|tan|cot)(?![A-Za-z])")
_DEGREES = re.compile(r"(\d[\d.]*) ?\^\\circ")
_PERIODIC = re.compile(r"(\d{1,9})(?:[.,]|\{,\})(\d{0,9})(?:\((\d{1,9})\)|\\overline *\{(\d{1,9})\})")
_NAMED = re.compile(r" *([A-Za-z])(?:_\w|_\{\w+\})? *=([^=]*)")
_TEXT_UNIT = re.compile(r"\\text\{([^{}]*)\} *(?:\^ *\{? *([23]) *\}?)?$")
_BARE_UNIT = re.compile(r"(?<=[\d})])( ?)([^\W\d_]+\.?(?:(?: ?/ ?| )[^\W\d_]+\.?){0,3}) *(?:\^? ?\{?([23])\}?)?$")
_NUMBER = re.compile(r"[-+]?\d[\d .,/]*|[-+]?\\frac\{\d+\}\{\d+\}")
_RUN = re.compile(r"\d+(?:[.,]\d+)+")
_COMMAS, _POINTS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?"), re.compile(r"\d{1,3}(?:\.\d{3})+(?:,\d+)?")
_NOT_UNITS = {"sin", "cos", "tan", "cot", "log", "sqrt", "frac", "lub", "oraz", "and", "albo", "mod"}

_STEMS = {
    "milimetr": "mm", "millimet": "mm", "centymetr": "cm", "centimet": "cm", "decymetr": "dm", "metr": "m",
    "meter": "m", "metre": "m", "kilometr": "km", "kilomet": "km", "miligram": "mg", "milligram": "mg",
    "dekagram": "dag", "kilogram": "kg", "gram": "g", "tona": "t", "tony": "t", "ton": "t", "mililitr": "ml",
    "millilit": "ml", "litr": "l", "liter": "l", "litre": "l", "hektar": "ha", "hectare": "ha",
    "sekund": "s", "second": "s", "minut": "min", "godzin": "h", "hour": "h", "dzień": "d", "dzien": "d",
    "dni": "d", "doba": "d", "doby": "d", "dób": "d", "days": "d", "day": "d", "tydzień": "wk", "tygodni": "wk",
    "week": "wk", "miesi": "mo", "month": "mo", "rok": "y", "lat": "y", "year": "y",
    "złot": "zł", "zlot": "zł", "grosz": "gr", "euro": "€", "dolar": "$", "dollar": "$", "cent": "ct",
    "stopni": "°", "stopień": "°", "degree": "°", "procent": "%", "percent": "%",
}  # fmt: skip
_SYMBOLS = {
    **{symbol: symbol for symbol in (
        "mm cm dm m km mg g dag kg t ml l hl ha a s min h d zł gr € $ % ° °C °F K N J kJ W kW MW kWh V A Hz Pa hPa kPa "
        "mol Ω B kB MB GB rad m/s km/h m/min"
    ).split()},
    "sek": "s", "sec": "s", "godz": "h", "hr": "h", "hrs": "h", "mies": "mo", "tyg": "wk", "PLN": "zł", "zl": "zł",
    "EUR": "€", "USD": "$", "proc": "%", "L": "l", "mL": "ml", "kph": "km/h", "kmh": "km/h", "lat": "y", "rok": "y",
    "deg": "°", "st": "°", "μm": "μm", "szt": "szt",
}  # fmt: skip


class Written(NamedTuple):
    """An answer in one notation."""

    text: str  # without its unit
    unit: str  # the symbol of a known one, the first letters of another word; empty: none


def read(text: str, language: str) -> Written:
    """An answer of at most `LONGEST` characters, in the notation that its task's language has for numbers."""
    comma = language.partition("-")[0].lower() not in POINT
    text = _bare(text.translate(_SIGNS))
    for pattern, new in _REPLACED:
        text = pattern.sub(new, text)
    text = _bare(text)
    if comma:  # the closed interval of Polish schools
        text = re.sub(r"^<|\\langle ?", "[", text)
        text = re.sub(r">$| ?\\rangle", "]", text)
    text, unit = (text, "") if _FUNCTION.search(text) else _unit(text)
    text = _numbers(_PERIODIC.sub(_fraction, text), comma).strip()
    if _FUNCTION.search(text):
        text = _DEGREES.sub(r"(\\frac{\1\\pi}{180})", text)
    return Written(_solutions(text), unit)


def word(text: str) -> str:
    """An answer in words without its markup, for comparison; empty where it has anything but letters."""
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text).replace("-", " ").strip()
    return " ".join(text.casefold().split()) if all(c.isalpha() or c == " " for c in text) else ""


def _bare(text: str) -> str:
    """Without the marks of mathematics around it and a full stop behind it."""
    text = text.strip().rstrip(".,;").strip()
    for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(left) and text.endswith(right) and len(text) >= len(left) + len(right):
            text = text[len(left) : len(text) - len(right)].strip()
    return text


def _solutions(text: str) -> str:
    """x_1=1, x_2=2 without the name, which says no more than that there are two."""
    parts = [_NAMED.fullmatch(part) for part in text.split(",")]
    if len(parts) > 1 and all(parts) and len({part[1] for part in parts}) == 1:
        return ",".join(part[2] for part in parts)
    return text


def _unit(text: str) -> tuple[str, str]:
    """A text without the unit at its end, or the currency at its beginning, and that unit."""
    if found := re.match(r"\\?([$€]) *(?=\d)", text):
        return text[found.end() :], found[1]
    if found := re.search(r" *(?:\\?([%$€])|\^\\circ *(?:\\text\{ ?)?([CF]?)\}?)$", text):
        return text[: found.start()], found[1] or f"°{found[2]}"
    if (found := _TEXT_UNIT.search(text)) and found.start():
        return text[: found.start()].strip(), _symbol(found[1], found[2])
    if found := _BARE_UNIT.search(text):
        space, name, power = found.groups()
        known = name.rstrip(".") in _SYMBOLS or name.casefold().startswith(tuple(_STEMS))
        plain = _NUMBER.fullmatch(text[: found.start()].rpartition("=")[2].strip())
        function = name.casefold().split()[0] in _NOT_UNITS
        if not function and ((known and (space or len(name) > 1)) or (plain and space and len(name) > 2)):
            return text[: found.start()].strip(), _symbol(name, power)
    return text, ""


def _symbol(name: str, power: str | None) -> str:
    """The symbol of a unit that is known, in any of its forms; of any other word the first three letters."""
    name = name.strip().rstrip(".")
    whole = _SYMBOLS.get(name)
    if not whole:
        whole = ""
        for part in re.split(r"( na | per | ?/ ?| )", name):
            if part.strip() in ("/", "na", "per"):
                whole += "/"
            elif part.casefold().startswith(("kwadrat", "square", "kw.")) or part == "kw":
                power = "2"
            elif part.casefold().startswith(("sześcien", "cubic")):
                power = "3"
            elif part.strip():
                whole += _part(part.rstrip("."))
    if not power and whole[-1:] in ("2", "3"):  # m2
        whole, power = whole[:-1], whole[-1]
    return whole + (f"^{power}" if power else "")


def _part(name: str) -> str:
    if name in _SYMBOLS:
        return _SYMBOLS[name]
    small = name.casefold()
    if small[-1:] in "23" and small[:-1] in _SYMBOLS:
        return name
    stem = next((stem for stem in _STEMS if small.startswith(stem)), None)
    if stem:
        return _STEMS[stem]
    # Words are declined: jabłko, jabłka, jabłek; osoba, osób.
    letters = unicodedata.normalize("NFD", small)
    return "".join(c for c in letters if not unicodedata.combining(c))[:3]


def _fraction(decimal: re.Match[str]) -> str:
    """0,1(6) as (16 - 1) / 90."""
    before, fixed, *period = decimal.groups(default="")
    repeated = "".join(period)
    ninths = (10 ** len(repeated) - 1) * 10 ** len(fixed)
    return rf"\frac{{{int(before + fixed + repeated) - int(before + fixed)}}}{{{ninths}}}"


def _numbers(text: str, comma: bool) -> str:
    """Every number with a decimal point and nothing between its thousands, every separator a comma."""
    if comma:
        text = text.replace("{,}", ".")
    else:
        text = re.sub(r"\{,\}(?=\d{3}(?!\d))", "", text).replace("{,}", ".")
    separated = ";" in text
    brackets, depth, position = [], 0, 0
    while position < len(text):  # depth of the brackets that a list may have; those of \frac{1,5}{2} are not
        if text[position] in "([" or text.startswith(r"\{", position):
            depth += 1
        elif text[position] in ")]" or text.startswith(r"\}", position):
            depth -= 1
        step = 2 if text[position] == "\\" else 1
        brackets += [depth] * step
        position += step
    text = _RUN.sub(lambda m: m[0] if brackets[m.start()] > 0 and not separated else _number(m[0], comma), text)
    return text.replace(";", ", ")


def _number(run: str, comma: bool) -> str:
    """Digits with points and commas between them, as one number, or as they are where they are several."""
    if comma:
        if run.count(",") == 1 and ("." not in run or _POINTS.fullmatch(run)):
            return run.replace(".", "").replace(",", ".")
        if run.count(".") > 1 and _POINTS.fullmatch(run):
            return run.replace(".", "")
        several = run.count(",") > 1 or "." in run
        return run.replace(",", "") if several and _COMMAS.fullmatch(run) else run
    return run.replace(",", "") if _COMMAS.fullmatch(run) else run
