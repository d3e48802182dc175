"""A tokenizer as GGUF carries it: tokens with their types, merges or scores, special tokens, chat template.

Everything is read from the fast tokenizer that transformers makes, so that the two cannot differ in what they were
made of. llama.cpp has two tokenizers that serve here: `gpt2`, byte-level BPE, whose rule for cutting text into words it
knows only by a name, and `llama`, SentencePiece's BPE with bytes for what it lacks.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bielik_nemo.data.tokenizer import load_tokenizer
from bielik_nemo.errors import DataError

if TYPE_CHECKING:
    from gguf import GGUFWriter

SPECIAL = ("bos", "eos", "unk", "pad")
NEVER = "ĀĀ Ā"
"""A merge that is never made, since nothing makes its left half: llama.cpp wants one of a byte-level tokenizer."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in llama.cpp's terms.

    Attributes:
        kind: `gpt2` or `llama`.
        tokens: one for each row of the embedding; rows that no token has are called `[PAD<id>]`.
        types: llama.cpp's type of each token.
        merges: of `gpt2`: pairs of pieces, parted by a space, in their order.
        scores: of `llama`: the higher, the earlier two pieces become this token.
        special: ids by `SPECIAL`, as far as the tokenizer has them.
        adds: whether it puts `bos` before a text, `eos` behind, `space_prefix` before the first word.
        chat_template: Jinja, or None.
    """

    kind: str
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    special: dict[str, int] = field(default_factory=dict)
    adds: dict[str, bool] = field(default_factory=dict)
    chat_template: str | None = None

    def add_to(self, writer: GGUFWriter, pre: str) -> None:
        """Write it into a file's head; `pre` is llama.cpp's name of the rule that cuts text into words."""
        writer.add_tokenizer_model(self.kind)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.kind == "gpt2":
            writer.add_token_merges(self.merges or [NEVER])
        else:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.adds["space_prefix"])
        for name, token in self.special.items():
            getattr(writer, f"add_{name}_token_id")(token)
        writer.add_add_bos_token(self.adds["bos"])
        writer.add_add_eos_token(self.adds["eos"])
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read(directory: Path, vocab_size: int) -> Vocabulary:
    """The vocabulary of a Hugging Face directory.

    Args:
        directory: with the tokenizer's files.
        vocab_size: rows of the model's embedding.

    Raises:
        DataError: it cannot be loaded, or is of a kind that neither of llama.cpp's two tokenizers is.
    """
    from gguf import TokenType

    tokenizer = load_tokenizer(directory, vocab_size)
    if not tokenizer.is_fast:
        raise DataError(f"{directory}: a tokenizer without a fast implementation cannot be written as GGUF")
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    kind = _kind(content)
    if kind is None:
        raise DataError(f"{directory}: found a tokenizer of type {model['type']}, allowed for GGUF: BPE over bytes")
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    for token, index in model["vocab"].items():
        is_byte = kind == "llama" and _BYTE.fullmatch(token)
        tokens[index], types[index] = token, int(TokenType.BYTE if is_byte else TokenType.NORMAL)
    for added in content["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in SPECIAL}
    if kind == "llama" and special["unk"] is not None:
        types[special["unk"]] = int(TokenType.UNKNOWN)
    around = tokenizer("a")["input_ids"]
    return Vocabulary(
        kind,
        tokens,
        types,
        merges,
        _scores(tokens, merges) if kind == "llama" else [],
        {name: index for name, index in special.items() if index is not None},
        {
            "bos": around[0] == special["bos"],
            "eos": around[-1] == special["eos"],
            "space_prefix": _prefixed(content),
        },
        tokenizer.chat_template,
    )


def _kind(content: dict[str, Any]) -> str | None:
    if content["model"]["type"] != "BPE":
        return None
    if content["model"].get("byte_fallback"):
        return "llama"
    return "gpt2" if (content.get("decoder") or {}).get("type") == "ByteLevel" else None


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Of each token how late it is made: the place of the first merge that makes it, below zero.

    SentencePiece joins two pieces as soon as their join has the highest score of all, which is the order of the merges.
    """
    first: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        first.setdefault(merge.replace(" ", ""), rank)
    return [-float(first.get(token, len(merges))) for token in tokens]


def _prefixed(content: dict[str, Any]) -> bool:
    """Whether a space is put before the first word."""
    parts = [content.get("normalizer") or {}, content.get("pre_tokenizer") or {}]
    parts += [part for each in parts for part in each.get("normalizers", each.get("pretokenizers", ()))]
    return any(part.get("type") == "Prepend" or part.get("prepend_scheme") in ("first", "always") for part in parts)
