"""What tokens stand for, in a byte-level and in a SentencePiece vocabulary, and which of them are the same."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bielik_nemo.data.tiny import byte_tokenizer
from bielik_nemo.data.vocabulary import Meaning, meanings, overlap

PIECES = ["<unk>", "<s>", "</s>", "<0x0A>", "<0xC5>", "▁", "▁kot", "kot", "ż", "a", "▁▁"]


def sentencepiece(pieces: list[str]) -> PreTrainedTokenizerFast:
    """As a converted SentencePiece BPE: pieces with ▁ for a space, bytes by name, three special tokens."""
    made = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_level(tokens: list[str], **special: str) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def test_pieces():
    found = meanings(sentencepiece(PIECES))
    assert [found[index] for index in range(len(PIECES))] == [
        Meaning("special", b"<unk>"),
        Meaning("special", b"<s>"),
        Meaning("special", b"</s>"),
        Meaning("byte", b"\n"),
        Meaning("byte", b"\xc5"),
        Meaning("text", b" "),
        Meaning("text", b" kot"),
        Meaning("text", b"kot"),
        Meaning("text", "ż".encode()),
        Meaning("text", b"a"),
        Meaning("text", b"  "),
    ]


def test_letters_of_bytes():
    """Ġ is a space, Ċ a new line; ż is the bytes C5 BC, written Å¼, and Å alone is the byte C5."""
    tokens = ["Ġkot", "kot", "Ċ", "Å¼", "Å", "a", "<|end|>"]
    found = meanings(byte_level(tokens, eos_token="<|end|>"))
    assert [found[index] for index in range(len(tokens))] == [
        Meaning("text", b" kot"),
        Meaning("text", b"kot"),
        Meaning("text", b"\n"),
        Meaning("text", "ż".encode()),
        Meaning("byte", b"\xc5"),
        Meaning("text", b"a"),
        Meaning("special", b"<|end|>"),
    ]


def test_the_same_across_both_kinds():
    """The new line is a letter here and the byte 0A there; the token that ends a text has another name."""
    bytes_ = byte_level(["Ġkot", "Ċ", "Å¼", "Å", "kota", "<|end|>", "Ġ"], eos_token="<|end|>")
    assert overlap(bytes_, sentencepiece(PIECES)) == {0: 6, 1: 3, 2: 8, 3: 4, 5: 2, 6: 5}
    assert overlap(sentencepiece(PIECES), bytes_) == {2: 5, 3: 1, 4: 3, 5: 6, 6: 0, 8: 2}


def test_a_special_token_is_the_same_by_name_before_it_is_by_its_use():
    new = byte_level(["</s>", "a"], eos_token="</s>")
    old = byte_level(["a", "<|im_end|>", "</s>"], eos_token="<|im_end|>", bos_token="</s>")
    assert overlap(new, old) == {0: 2, 1: 0}


def test_a_special_token_is_not_the_text_of_its_name():
    new = byte_level(["</s>", "a", "<|end|>"], eos_token="<|end|>")  # here it is four letters
    old = byte_level(["</s>", "a"], eos_token="</s>")
    assert overlap(new, old) == {1: 1, 2: 0}


def test_words_that_were_added_are_text():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("żółw", normalized=False)])
    assert meanings(tokenizer)[263] == Meaning("text", "żółw".encode())
    assert meanings(tokenizer)[261] == Meaning("special", b"<tool_call>")
    assert len(meanings(tokenizer)) == 264
