"""Counts by hand: "Zażółć gęślą" has 12 characters, 2 words and 12 + 7 = 19 bytes: ż ó ł ć ę ś ą have two each.

A tokenizer of bytes makes 19 tokens of it; "ala ma" adds 6 characters, bytes and tokens and 2 words.
"""

from __future__ import annotations

import pytest

from bielik_nemo.data.fertility import Fertility
from bielik_nemo.data.text import Document
from bielik_nemo.data.tiny import byte_tokenizer


def documents(*texts: str) -> list[Document]:
    return [Document(text, "", index) for index, text in enumerate(texts)]


def test_counts_by_hand():
    found = Fertility()
    found.add(byte_tokenizer(), documents("Zażółć gęślą"))
    found.add(byte_tokenizer(), documents("ala ma"))
    assert found == Fertility(documents=2, characters=18, bytes=25, words=4, tokens=25, unknown=0)
    record = found.record()
    assert record["tokens"] == 25 and record["documents"] == 2
    assert record["characters_per_token"] == pytest.approx(18 / 25)
    assert record["bytes_per_token"] == pytest.approx(1)
    assert record["tokens_per_word"] == pytest.approx(6.25)


def test_what_a_tokenizer_cannot_write_is_counted():
    """Words "ala" and "ma" are known; "kot" is not, in two of five places."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"ala": 0, "ma": 1, "<unk>": 2, "</s>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    found = Fertility()
    found.add(tokenizer, documents("ala ma kot", "kot ma"))
    assert (found.tokens, found.words, found.unknown) == (5, 5, 2)
