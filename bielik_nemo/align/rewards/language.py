r"""Language: the answer is in the language that the task asks for.

py3langid tells the languages of `LANGUAGES` apart, by pieces of `PIECE` characters, so that an answer that changes its
language on the way is seen; mathematics, code, tool calls and digits are left out before. Right is an answer of whose
pieces at least the share `least` is in the task's language.

Unverifiable, and worth 0: fewer than `FEWEST` letters are left, which say nothing, or the task names no language, or
none of these.
"""

from __future__ import annotations

import re
from functools import lru_cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from bielik_nemo.align.reward import Completion, Reward, Task, Verdict

LANGUAGES = frozenset(
    "ar bg cs da de el en es et fi fr hr hu it ja ko lt lv nl no pl pt ro ru sk sl sr sv tr uk vi zh".split()
)
FEWEST = 20
PIECE = 400
_PIECES = 64
_LONGEST = 1_000_000
"""Characters that are read; of what remains, at most `_PIECES` pieces, evenly spread."""

_MARKS = (
    ("```", "```"),
    ("<tool_call>", "</tool_call>"),
    (r"\[", r"\]"),
    (r"\(", r"\)"),
    ("$$", "$$"),
    ("$", "$"),
    ("`", "`"),
)
"""What begins and ends mathematics, code and calls, the longer ones first."""
_LEFT_OUT = re.compile(r"\\[A-Za-z]+|https?://\S+|\d+")


def language(completion: Completion, task: Task, least: float = 0.8) -> Reward:
    """1 where the answer is in the task's language, else 0.

    Parts: `share` of its pieces in that language, `probability` of that language in the mean over the pieces.
    """
    wanted = task.language.partition("-")[0].lower()
    words = _words(completion.text[:_LONGEST])
    if wanted not in LANGUAGES or sum(map(str.isalpha, words)) < FEWEST:
        return Reward(0.0, Verdict.UNVERIFIABLE, {"share": 0.0, "probability": 0.0})
    ranks = [dict(_identifier().rank(piece)) for piece in _pieces(words)]
    share = sum(max(rank, key=rank.get) == wanted for rank in ranks) / len(ranks)
    probability = sum(rank[wanted] for rank in ranks) / len(ranks)
    verdict = Verdict.CORRECT if share >= least else Verdict.WRONG
    return Reward(float(share >= least), verdict, {"share": share, "probability": probability})


def _words(text: str) -> str:
    """What people read of a text, in time that its length gives."""
    for opening, closing in _MARKS:
        text = _outside(text, opening, closing)
    return " ".join(_LEFT_OUT.sub(" ", text).split())


def _outside(text: str, opening: str, closing: str) -> str:
    """A text without what stands between two marks; what is opened and never closed stays."""
    before, *parts = text.split(opening)
    kept = [before]
    if opening == closing:
        kept += parts[1::2] + (parts[-1:] if len(parts) % 2 else [])
    else:
        for part in parts:
            inside, closed, after = part.partition(closing)
            kept.append(after if closed else inside)
    return " ".join(kept)


def _pieces(words: str) -> list[str]:
    """Pieces of about equal length; of more than can be looked at, some from everywhere."""
    count = max(1, round(len(words) / PIECE))
    length = -(-len(words) // count)
    pieces = [words[start : start + length] for start in range(0, len(words), length)]
    return pieces[:: -(-len(pieces) // _PIECES)]


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    """The model that comes with py3langid, read once in a process."""
    identifier = LanguageIdentifier.from_pickled_model(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES)
    return identifier
