r"""Final answers in `\boxed{...}`, found by one walk over the text, however deep or broken its braces are."""

from __future__ import annotations

BOXED = r"\boxed"


def last_boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds; None where there is none, or the last one is not closed."""
    start = text.rfind(BOXED)
    return None if start < 0 else group(text, start + len(BOXED))


def group(text: str, start: int) -> str | None:
    """What the braces that open at `start` hold, spaces before them aside; None where none open or they stay open.

    Linear in the text. A brace behind a backslash is a character like any other.
    """
    while start < len(text) and text[start].isspace():
        start += 1
    if text[start : start + 1] != "{":
        return None
    depth, position = 0, start
    while position < len(text):
        match text[position]:
            case "\\":
                position += 1
            case "{":
                depth += 1
            case "}":
                depth -= 1
                if not depth:
                    return text[start + 1 : position]
        position += 1
    return None
