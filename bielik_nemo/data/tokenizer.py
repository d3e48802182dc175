"""The model's own tokenizer, loaded without running code from its directory and checked against the model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bielik_nemo.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bielik_nemo.data.text import Document

T = TypeVar("T")
BYTE, SPACE = re.compile("<0x[0-9A-F]{2}>"), "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a byte that it has no piece for, and a space."""
BATCH_CHARACTERS = 2**21
"""Text that is tokenised at a time: enough for many threads, some 200 MB while it lasts."""


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of one document, and the end-of-text token that parts it from the next."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def encode_all(
    tokenizer: PreTrainedTokenizerBase, documents: Iterable[Document]
) -> Iterator[tuple[Document, list[int]]]:
    """Every document with what `encode` gives for it, in order, on all cores (`RAYON_NUM_THREADS`: on so many).

    A tokenizer without a fast implementation does it on one.
    """
    if not tokenizer.is_fast:
        for document in documents:
            yield document, encode(tokenizer, document.text)
        return
    # Directly: the same ids as through transformers, which spends four times as long on lists that nobody reads.
    fast = tokenizer.backend_tokenizer
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = tokenizer.split_special_tokens
    for batch in batches(documents, lambda document: len(document.text), BATCH_CHARACTERS):
        texts = [document.text for document in batch]
        for document, found in zip(batch, fast.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            yield document, [*found.ids, tokenizer.eos_token_id]


def batches(items: Iterable[T], size_of: Callable[[T], int], size: int) -> Iterator[list[T]]:
    """Items in order, in lists of `size` or a little more."""
    batch, filled = [], 0
    for item in items:
        batch.append(item)
        filled += size_of(item)
        if filled >= size:
            yield batch
            batch, filled = [], 0
    if batch:
        yield batch


def open_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a directory, whatever model it is for.

    Raises:
        DataError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    if not directory.is_dir():  # transformers would take a relative path for the name of a model on its hub
        raise DataError(f"{directory}: no such directory, so no tokenizer")
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise DataError(f"{directory}: no tokenizer that transformers can load ({error})") from error


def byte_lengths(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[int]:
    """Bytes of UTF-8 text that each token id stands for; 0 for special tokens, and for ids that are no token.

    Their sum over a document is the document's size, and one more where the tokenizer begins every text with a space.
    """
    byte_level = hasattr(tokenizer, "byte_decoder")
    if tokenizer.is_fast:
        byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())["decoder"])
    found = [0] * vocab_size
    for word, token in tokenizer.get_vocab().items():
        if token in tokenizer.added_tokens_decoder:
            added = tokenizer.added_tokens_decoder[token]
            found[token] = 0 if added.special else len(added.content.encode())
        elif byte_level:
            found[token] = len(word)  # a character for each byte
        elif BYTE.fullmatch(word):
            found[token] = 1
        else:
            found[token] = len(word.replace(SPACE, " ").encode())
    return found


def load_tokenizer(directory: Path, vocab_size: int) -> PreTrainedTokenizerBase:
    """Tokenizer of a Hugging Face directory.

    Args:
        directory: with the tokenizer's files.
        vocab_size: rows of the model's embedding.

    Raises:
        DataError: it cannot be loaded, gives ids that the model does not have, or has no end-of-text token.
    """
    tokenizer = open_tokenizer(directory)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocab_size:
        raise DataError(
            f"{directory}: the tokenizer has token ids up to {largest}, the model's vocabulary has {vocab_size}; "
            "it is another model's tokenizer"
        )
    if tokenizer.eos_token_id is None:
        raise DataError(f"{directory}: the tokenizer names no eos_token, which separates documents")
    return tokenizer


def check_same_words(directory: Path, other: Path, vocab_size: int, than: str = "the teacher") -> None:
    """Refuse a model whose token ids mean other words than another's: what is made of the two would mix them up.

    Args:
        directory: with the model's tokenizer.
        other: directory with the other's.
        vocab_size: rows of both models' embeddings.
        than: what the other is called.

    Raises:
        DataError: a token has another id, or only one of them has it; the first ones are named.
    """
    ours, theirs = (load_tokenizer(each, vocab_size).get_vocab() for each in (directory, other))
    differing = sorted(word for word in ours.keys() | theirs.keys() if ours.get(word) != theirs.get(word))
    if differing:
        some = "; ".join(f"{word!r}: {ours.get(word)}, {than}'s {theirs.get(word)}" for word in differing[:3])
        raise DataError(f"{directory}: another tokenizer than {than}'s, {len(differing)} words differ ({some})")
