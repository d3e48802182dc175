"""The model's own tokenizer, loaded without running code from its directory and checked against the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bielik_nemo.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of one document, and the end-of-text token that parts it from the next."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def load_tokenizer(directory: Path, vocab_size: int) -> PreTrainedTokenizerBase:
    """Tokenizer of a Hugging Face directory.

    Args:
        directory: with the tokenizer's files.
        vocab_size: rows of the model's embedding.

    Raises:
        DataError: it cannot be loaded, gives ids that the model does not have, or has no end-of-text token.
    """
    from transformers import AutoTokenizer

    if not directory.is_dir():  # transformers would take a relative path for the name of a model on its hub
        raise DataError(f"{directory}: no such directory, so no tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise DataError(f"{directory}: no tokenizer that transformers can load ({error})") from error
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocab_size:
        raise DataError(
            f"{directory}: the tokenizer has token ids up to {largest}, the model's vocabulary has {vocab_size}; "
            "it is another model's tokenizer"
        )
    if tokenizer.eos_token_id is None:
        raise DataError(f"{directory}: the tokenizer names no eos_token, which separates documents")
    return tokenizer
