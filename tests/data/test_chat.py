"""Conversations in tokens with marks. The tiny tokenizer makes expectations exact: a byte is a token, its value the id;
<s> 256, </s> 257, <|im_start|> 259, <|im_end|> 260, <tool_call> 261, </tool_call> 262."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from bielik_nemo.config_align import ChatSource, PreferenceSource
from bielik_nemo.data import chat, smollm2
from bielik_nemo.data.chat_formats import BadLine, Turn
from bielik_nemo.data.chat_template import ChatML, OwnTemplate, Rendered
from bielik_nemo.data.tiny import byte_tokenizer
from bielik_nemo.errors import CheckpointError, DataError

S, E, START, END, CALL, CALLED = 256, 257, 259, 260, 261, 262
Marked = list[tuple[int, bool]]


def asked(*parts: str | int) -> Marked:
    return [(token, False) for part in parts for token in ([part] if isinstance(part, int) else part.encode())]


def answer(*parts: str | int) -> Marked:
    return [(token, True) for token, _ in asked(*parts)]


def turn(role: str, *content: str | int) -> Marked:
    return asked(START, f"{role}\n", *content, END, "\n")


def answered(*content: str | int) -> Marked:
    return asked(START, "assistant\n") + answer(*content, END, "\n")


def tokens(
    tokenizer: PreTrainedTokenizerFast, *records: dict[str, Any], tmp_path: Path, template: type = ChatML
) -> list[list[Marked]]:
    """What becomes of lines in a file: of each, its one or two texts."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    made = template(tokenizer)
    pairs = "chosen" in records[0]
    lines = chat.pairs(PreferenceSource(str(path)), made) if pairs else chat.conversations(ChatSource(str(path)), made)
    found = [texts for _, _, texts in chat.tokenised(tokenizer, lines)]
    assert len(found) == len(records)
    return [[list(zip(each.ids.tolist(), each.trained.tolist(), strict=True)) for each in texts] for texts in found]


def messages(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    "record, expected",
    [
        (messages(("user", "Ile?"), ("assistant", "Dwa.")), turn("user", "Ile?") + answered("Dwa.")),
        (
            {"instruction": "Dodaj", "input": "1, 1", "output": "2", "system": "Licz."},
            turn("system", "Licz.") + turn("user", "Dodaj\n\n1, 1") + answered("2"),
        ),
        (
            {"conversations": [{"from": "human", "value": "Żółw"}, {"from": "gpt", "value": "gęś 🐢"}]},
            turn("user", "Żółw") + answered("gęś 🐢"),
        ),
        ({"prompt": "a", "completion": "b"}, turn("user", "a") + answered("b")),
        (  # an answer in the prompt is no answer to it
            {"prompt": messages(("user", "a"), ("assistant", "b"), ("user", "c"))["messages"], "completion": "d"},
            turn("user", "a") + turn("assistant", "b") + turn("user", "c") + answered("d"),
        ),
        (messages(("user", "a"), ("assistant", "")), turn("user", "a") + answered()),
        (messages(("user", ""), ("assistant", "\n\n 🙂\n")), turn("user", "") + answered("\n\n 🙂\n")),
        (
            messages(("system", "ś"), ("user", "a"), ("assistant", "b"), ("user", "\n"), ("assistant", "🙂")),
            turn("system", "ś") + turn("user", "a") + answered("b") + turn("user", "\n") + answered("🙂"),
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "Ciepło?"},
                    {"role": "assistant", "content": "Hm.", "tool_calls": [{"name": "t", "arguments": {"m": "Łódź"}}]},
                    {"role": "tool", "content": "12°"},
                    {"role": "assistant", "content": "Nie."},
                ]
            },
            turn("user", "Ciepło?")
            + answered("Hm.\n", CALL, '\n{"name": "t", "arguments": {"m": "Łódź"}}\n', CALLED)
            + turn("tool", "12°")
            + answered("Nie."),
        ),
    ],
    ids=["messages", "alpaca", "sharegpt", "completion", "prompt", "empty", "line breaks", "turns", "tools"],
)
@pytest.mark.parametrize("end", [None, "</s>"])
def test_marks_by_hand(record: dict[str, Any], expected: Marked, end: str | None, tmp_path: Path):
    """With an end of text of its own, it is the last token, and trained."""
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = end or tokenizer.eos_token
    (found,) = tokens(tokenizer, record, tmp_path=tmp_path)
    assert found == [asked(S) + expected + (answer(E) if end else [])]


def test_marks_of_a_pair_by_hand(tmp_path: Path):
    """Answers of the prompt are not trained in either."""
    prompt = messages(("user", "a"), ("assistant", "b"), ("user", "ż"))["messages"]
    (found,) = tokens(byte_tokenizer(), {"prompt": prompt, "chosen": "🙂", "rejected": ""}, tmp_path=tmp_path)
    before = asked(S) + turn("user", "a") + turn("assistant", "b") + turn("user", "ż")
    assert found == [before + answered("🙂"), before + answered()]


def test_marks_under_the_tokenizers_own_template(tmp_path: Path):
    """The tiny one's has no <s>."""
    (found,) = tokens(
        byte_tokenizer(), messages(("user", "a"), ("assistant", "\nż")), tmp_path=tmp_path, template=OwnTemplate
    )
    assert found == [turn("user", "a") + answered("\nż")]


def test_a_space_before_an_answer_is_not_trained(tmp_path: Path):
    """Byte-level tokenizers commonly say of a token that it begins behind its spaces, where the answer is."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    turn = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}"
    tokenizer.chat_template = turn + "{% if add_generation_prompt %}a: {% endif %}"
    record = messages(("user", "x"), ("assistant", "y"))
    (found,) = tokens(tokenizer, record, tmp_path=tmp_path, template=OwnTemplate)
    assert found == [asked("u: x\na: ") + answer("y\n")]


@pytest.fixture(scope="module")
def merging() -> PreTrainedTokenizerFast:
    """A tokenizer with 48,900 merges of bytes: SmolLM2's."""
    from gguf import GGUFReader

    try:
        return smollm2.hf_tokenizer(GGUFReader(smollm2.find_gguf()))
    except CheckpointError as error:
        pytest.skip(str(error))


def by_parts(tokenizer: PreTrainedTokenizerFast, rendered: Rendered) -> Marked:
    """Slow and obvious: what is asked and what is answered, tokenised one by one, as they are at generation.

    True of merges of bytes, which know no beginning of a text.
    """
    found, edges = [], [0, *(edge for span in rendered.spans for edge in span), len(rendered.text)]
    for number, (a, b) in enumerate(pairwise(edges)):
        ids = tokenizer(rendered.text[a:b], add_special_tokens=False)["input_ids"]
        found += [(token, number % 2 == 1) for token in ids]
    return found


def test_marks_with_merges_are_those_of_parts(merging: PreTrainedTokenizerFast, tmp_path: Path):
    """400 conversations of words, spaces, line breaks and emoji, many of which begin or end with white space."""
    pick = random.Random(0)
    words = ["\n", "\n\n", " ", "  ", "\t", "żółw", "Ala", "🙂", "👩‍🚀", "1234", ".", "\r\n", "é", "e\u0301", "```"]

    def text() -> str:
        return "".join(pick.choices(words, k=pick.randrange(6)))

    template = ChatML(merging)
    turns = [[Turn(role, text()) for role in ("user", "assistant") * pick.randrange(1, 4)] for _ in range(400)]
    found = tokens(merging, *(messages(*each) for each in turns), tmp_path=tmp_path)
    expected = [[by_parts(merging, template.render(each))] for each in turns]
    assert found == expected
    # Some of them would have been one token with what stands before the answer.
    whole = [merging(template.render(each).text, add_special_tokens=False)["input_ids"] for each in turns]
    assert any(ids != [token for token, _ in texts[0]] for ids, texts in zip(whole, found, strict=True))


def test_a_line_break_that_would_merge_with_the_headers(merging: PreTrainedTokenizerFast, tmp_path: Path):
    """SmolLM2 has a token for two line breaks. The header ends with one, as it does at generation."""
    (found,) = tokens(merging, messages(("user", "a"), ("assistant", "\n")), tmp_path=tmp_path)
    word = merging.convert_ids_to_tokens
    assert [word(token) for token, _ in found[0][-4:]] == ["Ċ", "Ċ", "<|im_end|>", "Ċ"]
    assert [mark for _, mark in found[0][-4:]] == [False, True, True, True]


def test_marks_of_a_sentencepiece_tokenizer(tmp_path: Path):
    """Llama's kind: a space is put before every text between control tokens, a line break is a byte. An answer gets no
    such space, since the header stands before it in the same text; what follows its end mark does, and is trained."""
    words = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<0x0A>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    backend = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    (found,) = tokens(tokenizer, messages(("user", "a b"), ("assistant", "c d")), tmp_path=tmp_path)
    told = [(tokenizer.convert_ids_to_tokens(token), mark) for token, mark in found[0]]
    before = ["<s>", "<|im_start|>", "▁", *"user", "<0x0A>", "a", "▁", "b", "<|im_end|>", "▁", "<0x0A>"]
    before += ["<|im_start|>", "▁", *"assistant", "<0x0A>"]
    behind = ["c", "▁", "d", "<|im_end|>", "▁", "<0x0A>", "</s>"]
    assert told == [(word, False) for word in before] + [(word, True) for word in behind]


def test_truncation_and_padding_of_the_tokenizers_file_do_not_count(tmp_path: Path):
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=99)
    (found,) = tokens(tokenizer, messages(("user", "a"), ("assistant", "b")), tmp_path=tmp_path)
    assert found == [asked(S) + turn("user", "a") + answered("b")]


def test_batches_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(chat, "BATCH_CHARACTERS", 200)
    records = [{"prompt": str(number), "chosen": "a" * number, "rejected": "b"} for number in range(30)]
    found = tokens(byte_tokenizer(), *records, tmp_path=tmp_path)
    for number, texts in enumerate(found):
        before = asked(S) + turn("user", str(number))
        assert texts == [before + answered("a" * number), before + answered("b")]


def test_a_tokenizer_that_is_not_fast():
    class Slow:
        is_fast = False

    with pytest.raises(DataError, match="no fast implementation"):
        list(chat.tokenised(Slow(), []))


def test_lines_that_cannot_be_used_are_named(tmp_path: Path):
    """Files by path, lines from 1, blank ones not counted as lines but in the numbers."""
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("not this")
    good = json.dumps(messages(("user", "a"), ("assistant", "b"))).encode()
    lines = [
        good,
        b"",
        b'{"messages": "\xf3"}',
        b"[1]",
        b'{"messages": ',
        b"[" * 5000,
        b'{"messages": ' + b"9" * 5000 + b"}",
    ]
    lines.append(json.dumps(messages(("user", "a<|im_end|>"), ("assistant", "b"))).encode())
    (tmp_path / "b" / "z.jsonl").write_bytes(b"\r\n".join(lines))
    (tmp_path / "c.jsonl").write_bytes(good)
    found = list(chat.conversations(ChatSource(str(tmp_path), weight=0.5), ChatML(byte_tokenizer())))
    file = str(tmp_path / "b" / "z.jsonl")
    assert [line[:2] for line in found] == [(file, n) for n in (1, 3, 4, 5, 6, 7, 8)] + [(str(tmp_path / "c.jsonl"), 1)]
    assert found[0].example.weight == 50 and found[0].example.prompt == "a"
    whys = [str(line.example) for line in found if isinstance(line.example, BadLine)]
    for why, words in zip(
        whys,
        ["not UTF-8: byte 0xf3", "expected a JSON object, found list", "not JSON: Expecting value at column"]
        + ["not JSON that can be read"] * 2
        + ["turn 1 contains the control token <|im_end|>"],
        strict=True,
    ):
        assert why.startswith(words)


def test_nothing_to_read(tmp_path: Path):
    template = ChatML(byte_tokenizer())
    with pytest.raises(
        DataError, match=r"none\.jsonl: no such file or directory; allowed: a \.jsonl file or a directory"
    ):
        list(chat.conversations(ChatSource(str(tmp_path / "none.jsonl")), template))
    with pytest.raises(DataError, match="no text files in this directory"):
        list(chat.pairs(PreferenceSource(str(tmp_path)), template))
    with pytest.raises(DataError, match="builtin:none: no such built-in set"):
        list(chat.pairs(PreferenceSource("builtin:none"), template))


@pytest.mark.parametrize("trained, word", [(0, "none"), (5, "every one")])
def test_a_set_needs_both(trained: int, word: str):
    chat.check_marks("a", 5, 3)
    with pytest.raises(DataError, match=f"^a: of 5 tokens {word} is trained; allowed: "):
        chat.check_marks("a", 5, trained)
