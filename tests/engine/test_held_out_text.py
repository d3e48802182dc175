"""Bits per byte by hand, the same text in other words, and that what cannot be told is refused."""

from __future__ import annotations

import math

import pytest
import torch

from bielik_nemo.data.tiny import byte_tokenizer
from bielik_nemo.data.tokenizer import byte_lengths
from bielik_nemo.engine import held_out_text
from bielik_nemo.errors import DataError


def test_bits_per_byte():
    """Two blocks of two predictions, of 1, 3, 0 and 2 bytes: 6 in all. 4 predictions of 1.5 nats are 6 nats, 1 a byte.

    The first token of each block, of 5 bytes, is not predicted.
    """
    lengths = torch.tensor([0, 1, 2, 3, 5])
    blocks = torch.tensor([[4, 1, 3], [4, 0, 2]])
    assert held_out_text.bits_per_byte(1.5, blocks, lengths) == pytest.approx(1 / math.log(2))


def test_tokens_without_text_have_no_bits_per_byte():
    with pytest.raises(DataError, match="stand for no byte of text"):
        held_out_text.bits_per_byte(1.0, torch.tensor([[1, 0, 0]]), torch.tensor([0, 1]))


def test_a_model_that_knows_nothing_needs_eight_bits_per_byte():
    """One of 256 bytes, each as likely: ln 256 nats a token are 8 bits."""
    lengths = torch.tensor(byte_lengths(byte_tokenizer(), 263))
    blocks = torch.tensor([list("zażółć gęślą jaźń".encode())])
    assert held_out_text.bits_per_byte(math.log(256), blocks, lengths) == pytest.approx(8)


class Words:
    """Every word, with the space before it, is a token; 0 ends a document."""

    eos_token_id = 0

    def __init__(self):
        self.known: list[str] = []

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        words = text.replace(" ", "\0 ").split("\0")
        self.known += [word for word in words if word not in self.known]
        return {"input_ids": [1 + self.known.index(word) for word in words]}


def test_the_same_text_in_other_words():
    """Blocks of 8 bytes out of "ab cd ef", end, "gh ij kl": 17 tokens, two blocks and the token they share.

    In words: ab, cd, ef, end, gh, ij, kl, end: 8 tokens; blocks of 2 predictions take 2 n + 1 of them: 7, three blocks.
    """
    eos, text = 260, "ab cd ef"
    stream = [*text.encode(), eos, *b"gh ij kl"]
    blocks = torch.tensor([stream[:9], stream[8:]])
    found = held_out_text.retokenised(blocks, byte_tokenizer(), Words(), seq_length=2)
    assert found.tolist() == [[1, 2, 3], [3, 0, 4], [4, 5, 6]]


def test_a_character_of_which_only_a_part_is_there_is_left_out():
    """Of "aż" the last byte is in no block."""
    blocks = torch.tensor([[97, 32, 97, *"ż".encode()[:1]]])
    found = held_out_text.retokenised(blocks, byte_tokenizer(), Words(), seq_length=2)
    assert found.tolist() == [[1, 2, 0]]


def test_too_little_text_for_a_block_of_other_words():
    with pytest.raises(DataError, match=r"2 tokens do not fill a block of data\.seq_length=2 \+ 1"):
        held_out_text.retokenised(torch.tensor([[97, 98, 99]]), byte_tokenizer(), Words(), seq_length=2)
