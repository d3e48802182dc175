"""Conversations and preference pairs that need no download: what sources of SFT and DPO may name besides files.

`builtin:polish-corrections` (pairs and conversations, Polish): sentences with a mistake and their corrections, from the
examples of LanguageTool's grammar rules in the package `lingotweaker-data-pl` (LGPL-2.1 or later). Chosen is the
corrected sentence, rejected the one left as it is: a few letters apart, which is where plain DPO lowers the probability
of the chosen one and DPO-Positive does not. As conversations, the answer is the corrected sentence. Of these,
`builtin:polish-corrections-small` has a quarter of the short ones, for a few minutes on a CPU.

`builtin:evals-english`, `builtin:evals-polish` (conversations): questions with ideal answers out of the package
`evals`. Its licence (MIT) names sets that others own: none of those is here, nor one made from a published corpus,
nor one whose answers are letters of a multiple choice.

The sets of builtin_tasks.py are conversations as well.

Both packages are installed for these files alone (`make venv` does it), each file known by its digest; nothing of them
is part of this project.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from bielik_nemo.data import builtin_tasks
from bielik_nemo.data.packaged import packaged_file
from bielik_nemo.errors import DataError

CORRECTIONS = "builtin:polish-corrections"
CORRECTIONS_SMALL = "builtin:polish-corrections-small"
CORRECTIONS_FILE = (
    "lingotweaker-data-pl",
    "0.1.5",
    "lingotweaker_data_pl/data/pl/rules/grammar.xml",
    "34b90a5ad5ba34fc909ce88952f02b1a734a18730d4f844fc0a268990b63084e",
)
SHORT, EVERY = 40, 4
"""Of the small set: characters that a sentence with a mistake may have, and every so many of these that are taken."""
INSTRUCTION = "Popraw błąd w zdaniu. Odpowiedz samym poprawionym zdaniem."

EVALS = ("evals", "3.0.1.post1")
QUESTIONS = {
    "builtin:evals-english": {
        "balance_chemical_equation/samples": "43ec460465cb33e0d5e62822219d0de58a298b6cca01d29db6f87837c38da2f5",
        "consensus_summary/samples": "3573fca21526acb8e65cba1e6e88ae6877856454ab224dda4bd04828527c1299",
        "css-selectors/verbal": "5607a98df7498d4ba7c00738acca4f360226a23ad37ae01331ad95536ad68893",
        "imperial_date_to_string/samples": "e12d1f2f5cf668ea5793013e3e0a13948422db637ae232240c5f2738e9131994",
        "largest_country/samples": "a0da25edffc8dc519a36904a725aa29cc6d2d95617954edb4be6367fe3ffe216",
        "music_theory_scale_modes/samples": "96756e5689686dd68024d04af921b0a39a44cf0abd912907b1ae04bb84157ffa",
        "proofreader/samples": "cebe48e3128bada71ba61ac12eadc689f4737eaf4900965cbbe23c9a5ac27991",
        "soc_codes/samples": "420b2cb1fe3a5536b41889f3506dc48d0cbab25302eea4b39890b6590d170619",
    },
    "builtin:evals-polish": {
        "math_polish/samples": "1f2a9bed83e92b1378c1ebc28a55dd51cd33e3cda8f1dfefb81cb212a59abcf1",
        "polish-proverbs/samples": "c24184c144620a169c473d3c8ce1b790076501afc83019d00d0fa704e20d0b9c",
    },
}
"""The sets of `evals` that a name stands for, and the digests of their files."""

PAIRS = (CORRECTIONS, CORRECTIONS_SMALL)
CONVERSATIONS = (*PAIRS, *QUESTIONS, *builtin_tasks.SETS)
"""What `dpo.sources` and `sft.sources` may name."""


def conversations(name: str) -> Iterator[dict[str, Any]]:
    """The conversations of a built-in set, each as a line of a .jsonl file would say it: `{"messages": [...]}`.

    Raises `DataError` while iterating: no such set, or its package is not installed.
    """
    _known(name, CONVERSATIONS)
    if name in PAIRS:
        for wrong, right in _corrections(name):
            yield {"messages": [{"role": "user", "content": _request(wrong)}, {"role": "assistant", "content": right}]}
    elif name in QUESTIONS:
        for path in files(name):
            yield from _questions(path)
    else:
        yield from builtin_tasks.conversations(name)


def pairs(name: str) -> Iterator[dict[str, Any]]:
    """The preference pairs of a built-in set as lines: `{"prompt": ..., "chosen": ..., "rejected": ...}`.

    Raises `DataError` while iterating: no such set, or its package is not installed.
    """
    _known(name, PAIRS)
    for wrong, right in _corrections(name):
        yield {"prompt": _request(wrong), "chosen": right, "rejected": wrong}


def files(name: str) -> list[Path]:
    """The files that a built-in set is read from; none of one that is made here.

    Raises `DataError` where its package is not installed, or holds another file.
    """
    if name in builtin_tasks.SETS:
        return []
    if name in PAIRS:
        return [packaged_file(name, *CORRECTIONS_FILE, DataError)]
    return [
        packaged_file(name, *EVALS, f"evals/registry/data/{file}.jsonl", sha256, DataError)
        for file, sha256 in QUESTIONS[name].items()
    ]


def _known(name: str, allowed: tuple[str, ...]) -> None:
    if name not in allowed:
        near = difflib.get_close_matches(name, allowed, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(f"{name}: no such built-in set; allowed: {', '.join(allowed)}{hint}")


def _request(sentence: str) -> str:
    return f"{INSTRUCTION}\n\n{sentence}"


def _corrections(name: str) -> Iterator[tuple[str, str]]:
    """A sentence with a mistake and the first correction that its rule proposes; each sentence once."""
    found = _all_corrections(name)
    if name == CORRECTIONS:
        return found
    return islice((each for each in found if len(each[0]) <= SHORT), 0, None, EVERY)


def _all_corrections(name: str) -> Iterator[tuple[str, str]]:
    """The same of the whole set.

    An example of a rule is `<example correction="right|also right">Text <marker>wrong</marker> text</example>`. The
    file declares entities of its own; that it is the one with this digest is what makes it safe to parse.
    """
    seen = set()
    (path,) = files(name)
    for example in ElementTree.parse(path).iter("example"):
        correction, marker = example.get("correction", "").split("|")[0], example.find("marker")
        if not correction or marker is None:  # a sentence without a mistake, or a rule that proposes nothing
            continue
        before, mistake, after = (text or "" for text in (example.text, marker.text, marker.tail))
        wrong, right = (" ".join((before + part + after).split()) for part in (mistake, correction))
        if wrong != right and wrong not in seen:
            seen.add(wrong)
            yield wrong, right


def _questions(path: Path) -> Iterator[dict[str, Any]]:
    """The conversations of one set of `evals`, each question once, with the first of its ideal answers."""
    seen = set()
    for line in filter(str.strip, path.read_text(encoding="utf-8").split("\n")):
        sample = json.loads(line)
        ideal = sample["ideal"][0] if isinstance(sample["ideal"], list) else sample["ideal"]
        system = [each["content"].strip() for each in sample["input"] if each["role"] == "system"]
        (question,) = (each["content"].strip() for each in sample["input"] if each["role"] == "user")
        if question not in seen:
            seen.add(question)
            messages = [{"role": "system", "content": "\n".join(system)}] if system else []
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": ideal.strip()}]
            yield {"messages": messages}
