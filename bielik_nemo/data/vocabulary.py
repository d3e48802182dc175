"""What the tokens of a vocabulary stand for, so that two tokenizers of different kinds can be held against each other.

Byte-level BPE writes every byte as a letter of its own alphabet (` kota` is `Ġkota`), SentencePiece writes a space as
`▁` and the bytes that are no piece as `<0x0A>`. Both become the bytes of the text. A token with a meaning of its own,
such as one that ends a text, keeps its name.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Meaning(NamedTuple):
    """What a token stands for: `text`, a `byte` that is none by itself, or `special`, known by its name."""

    kind: str
    content: bytes


def meanings(tokenizer: PreTrainedTokenizerBase) -> dict[int, Meaning]:
    """What every token of a tokenizer stands for, by id."""
    vocabulary, special = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
    added = tokenizer.added_tokens_decoder
    alphabet = _alphabet() if _byte_level(tokenizer) else None
    found = {}
    for token, index in sorted(vocabulary.items(), key=lambda item: item[1]):
        if index in special or (index in added and added[index].special):
            found[index] = Meaning("special", token.encode())
        elif index in added:
            found[index] = Meaning("text", token.encode())
        elif alphabet is not None and all(letter in alphabet for letter in token):
            found[index] = _of_bytes(bytes(alphabet[letter] for letter in token))
        elif match := _BYTE.fullmatch(token):
            found[index] = Meaning("byte", bytes.fromhex(match[1]))
        else:
            found[index] = Meaning("text", token.replace("▁", " ").encode())
    return found


def overlap(target: PreTrainedTokenizerBase, source: PreTrainedTokenizerBase) -> dict[int, int]:
    """The source's id for each of the target's tokens that it has too.

    A token stands for the same, or, where there is none that does, for the same byte. One that begins or ends a text,
    pads it, or stands for what is unknown goes with the source's for that purpose, when no other has its name.
    """
    known: dict[Meaning, int] = {}
    for index, meaning in meanings(source).items():
        known.setdefault(meaning, index)
    other = {"text": "byte", "byte": "text"}
    found = {}
    for index, meaning in meanings(target).items():
        same = known.get(meaning)
        if same is None and meaning.kind in other:
            same = known.get(meaning._replace(kind=other[meaning.kind]))
        if same is not None:
            found[index] = same
    for role in ROLES:
        index, same = getattr(target, role), getattr(source, role)
        if index is not None and same is not None:
            found.setdefault(index, same)
    return found


def _of_bytes(content: bytes) -> Meaning:
    """Some tokens of a byte-level vocabulary are the bytes of a longer character; each such byte is one by itself."""
    return Meaning("byte" if len(content) == 1 and content[0] > 127 else "text", content)


def _byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer spells bytes as letters; one without a fast implementation is taken for SentencePiece."""
    if not tokenizer.is_fast:
        return False
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    return '"ByteLevel"' in json.dumps([parts["pre_tokenizer"], parts["decoder"]])


def _alphabet() -> dict[str, int]:
    """The byte that each letter of byte-level BPE stands for."""
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}
