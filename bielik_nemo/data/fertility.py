"""How finely a tokenizer cuts text: characters, bytes and words for its tokens.

Counted is what the text itself becomes: no tokens around a document, none between two. A word is what stands between
white space, so that punctuation belongs to its word (as in Bielik's reports); a character is a Unicode code point.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bielik_nemo.data.tokenizer import encode_all

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bielik_nemo.data.text import Document


@dataclass
class Fertility:
    """Counts of one tokenizer on one text; `unknown` are the tokens that stand for what it cannot write."""

    documents: int = 0
    characters: int = 0
    bytes: int = 0
    words: int = 0
    tokens: int = 0
    unknown: int = 0

    def add(self, tokenizer: PreTrainedTokenizerBase, documents: Iterable[Document]) -> None:
        """Count more documents, none of them blank."""
        for document, ids in encode_all(tokenizer, documents):
            self.documents += 1
            self.characters += len(document.text)
            self.bytes += len(document.text.encode())
            self.words += len(document.text.split())
            self.tokens += len(ids) - 1  # without the one that ends the document
            if tokenizer.unk_token_id not in (None, tokenizer.eos_token_id):
                self.unknown += ids.count(tokenizer.unk_token_id)

    def record(self) -> dict[str, Any]:
        """The counts, and characters per token, bytes per token, tokens per word."""
        return asdict(self) | {
            "characters_per_token": self.characters / self.tokens,
            "bytes_per_token": self.bytes / self.tokens,
            "tokens_per_word": self.tokens / self.words,
        }
