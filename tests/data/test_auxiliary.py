"""Auxiliary embeddings: what is read of the texts, which tokens have one, and that alike tokens are alike."""

from __future__ import annotations

import random
from array import array

import pytest
import torch

from bielik_nemo.config_tokenizer import SwapTokenizer
from bielik_nemo.data.auxiliary import Sentences, in_turn, learn, read
from bielik_nemo.data.text import Document
from bielik_nemo.data.tiny import byte_tokenizer

pytest.importorskip("gensim", reason="gensim is not installed: pip install 'bielik_nemo[tokenizer]'")
NAMES = ["red", "blue"]


def test_documents_of_all_sources_in_turn():
    sources = [[Document(text, "", 0) for text in texts] for texts in (["a", "b", "c"], ["d"], ["e", "f"])]
    assert [document.text for document in in_turn(sources)] == ["a", "d", "e", "b", "f", "c"]


def test_no_more_tokens_than_asked_for_and_none_between_documents():
    documents = [Document(text, "", 0) for text in ("abc", "de", "fgh")]
    assert bytes(list(read(byte_tokenizer(), documents, 7))) == b"abcdefg"
    assert bytes(list(read(byte_tokenizer(), documents, 99))) == b"abcdefgh"


def test_text_comes_again_in_pieces_that_gensim_does_not_cut():
    sentences = Sentences(array("I", [1, 0] * 1001), ["a", "b"])
    for _ in range(2):
        found = list(sentences)
        assert [len(sentence) for sentence in found] == [1000, 1000, 2] and found[0][:3] == ["b", "a", "b"]


def test_tokens_in_the_same_places_are_alike():
    """Of 40 tokens either half stands in sentences of its own."""
    drawn = random.Random(1)
    names = ["".join(drawn.choices("abcdefgh", k=6)) for _ in range(40)]
    halves = [drawn.randrange(2) for _ in range(2000)]
    ids = array("I", [20 * half + drawn.randrange(20) for half in halves for _ in range(20)])
    settings = SwapTokenizer(dimensions=16, epochs=10)
    seen, vectors = learn(ids, names, settings, seed=1)
    assert seen == list(range(40)) and vectors.shape == (40, 16)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    alike = unit @ unit.T
    assert alike[:20, :20].mean() > 0.9 > 0.5 > alike[:20, 20:].mean()
    assert torch.equal(vectors, learn(ids, names, settings, seed=1)[1])  # the same text and seed


def test_a_token_that_is_seldom_seen_has_none():
    assert learn(array("I", [0, 1, 1]), NAMES, SwapTokenizer(min_count=2, dimensions=4), seed=1)[0] == [1]
    seen, vectors = learn(array("I", [0]), NAMES, SwapTokenizer(dimensions=4), seed=1)
    assert seen == [] and vectors.shape == (0, 4)
