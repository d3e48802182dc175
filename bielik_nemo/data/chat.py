"""Conversations and preference pairs from .jsonl files -> token ids, and of each whether it is trained.

The text of a conversation is tokenised as a whole, and a token is trained when it begins inside an answer. Where one
begins before an answer and ends in it (the header's line break with one that the answer begins with), the text is cut
between the two first: at generation, the header is tokenised before there is an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bielik_nemo.data import builtin_chat, chat_formats
from bielik_nemo.data.builtin import PREFIX
from bielik_nemo.data.chat_formats import BadLine
from bielik_nemo.data.chat_template import ChatML, OwnTemplate, Rendered
from bielik_nemo.data.text import files_of, json_object, raw_lines
from bielik_nemo.data.tokenizer import batches
from bielik_nemo.errors import DataError
from bielik_nemo.validation.ranges import hundredths

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

    from bielik_nemo.align.reward import Task
    from bielik_nemo.config_align import ChatSource, PreferenceSource

SUFFIXES = (".jsonl",)
NAME = "{:05d}"
"""Dataset of a source, by its number."""
BATCH_CHARACTERS = 2**19
"""Text that is tokenised at a time. Places of tokens take much more memory than their ids."""


class Example(NamedTuple):
    """A line that can be used."""

    prompt: str  # which decides on which side it is
    texts: tuple[Rendered, ...]  # the conversation; of a pair, chosen and rejected; what asks for a task's answer
    weight: int | None  # in hundredths; of a pair and of a task, none
    task: Task | None = None


class Tokens(NamedTuple):
    """A conversation in tokens."""

    ids: np.ndarray  # int64 [n]
    trained: np.ndarray  # bool [n]


class Line(NamedTuple):
    """What is made of one line of a source."""

    file: str
    number: int  # from 1
    example: Example | BadLine


def conversations(source: ChatSource, template: ChatML | OwnTemplate) -> Iterator[Line]:
    """The conversations of a source, and the lines of which none can be made; see `lines_of` for errors."""

    def read(record: dict[str, Any]) -> Example:
        found = chat_formats.conversation(record, source.format)
        text = template.render(found.turns, found.trained_from)
        return Example(chat_formats.opening(found.turns), (text,), found.weight or hundredths(source.weight))

    return lines_of(source.path, builtin_chat.conversations, read)


def pairs(source: PreferenceSource, template: ChatML | OwnTemplate) -> Iterator[Line]:
    """The same of preference pairs."""

    def read(record: dict[str, Any]) -> Example:
        found = chat_formats.pair(record)
        answers = (found.chosen, found.rejected)
        texts = tuple(template.render([*found.prompt, *answer], len(found.prompt)) for answer in answers)
        return Example(chat_formats.opening([*found.prompt, *found.chosen]), texts, None)

    return lines_of(source.path, builtin_chat.pairs, read)


def lines_of(
    path: str, builtin: Callable[[str], Iterator[dict[str, Any]]], read: Callable[[dict[str, Any]], Example]
) -> Iterator[Line]:
    """Every line that is not blank, files in the order of their paths.

    Args:
        path: of a source.
        builtin: gives the lines of a built-in set.
        read: makes an example of a line's object.

    Raises:
        DataError: there is no such source, or no .jsonl file in it.
    """

    def tried(file: str, number: int, record: Callable[[], dict[str, Any]]) -> Line:
        try:
            return Line(file, number, read(record()))
        except BadLine as why:
            return Line(file, number, why)
        except DataError as error:
            return Line(file, number, BadLine(str(error).removeprefix(f"{file}:{number}: ")))
        except RecursionError:
            return Line(file, number, BadLine("nested too deeply"))

    if path.startswith(PREFIX):
        for number, record in enumerate(builtin(path), start=1):
            yield tried(path, number, lambda record=record: record)
        return
    for file in files_of(Path(path), SUFFIXES):
        for index, offset, raw in raw_lines(file):
            place = (raw, file, index + 1, offset)
            yield tried(str(file), index + 1, lambda place=place: json_object(*place))


def tokenised(
    tokenizer: PreTrainedTokenizerBase, lines: Iterable[Line]
) -> Iterator[tuple[Line, Example, list[Tokens]]]:
    """Every line that can be used with the tokens of its texts, in order, on all cores (`RAYON_NUM_THREADS`: so many).

    Raises:
        DataError: the tokenizer does not say where its tokens begin.
    """
    fast = _fast(tokenizer)
    usable = ((line, line.example) for line in lines if isinstance(line.example, Example))
    for batch in batches(usable, lambda each: sum(len(text.text) for text in each[1].texts), BATCH_CHARACTERS):
        texts = [text for _, example in batch for text in example.texts]
        encodings = fast.encode_batch([text for text, _ in texts], add_special_tokens=False)
        found = (_marked(fast, text, encoding) for text, encoding in zip(texts, encodings, strict=True))
        for line, example in batch:
            yield line, example, [next(found) for _ in example.texts]


def check_marks(source: str, tokens: int, trained: int) -> None:
    """Refuse a set in which nothing is trained, or everything is.

    Raises:
        DataError: names the source.
    """
    if trained in (0, tokens):
        what = "every one" if trained else "none"
        raise DataError(
            f"{source}: of {tokens:,} tokens {what} is trained; allowed: answers are, prompts are not "
            "(`bielik-nemo data preview` shows which)"
        )


def _fast(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the tokenizer's implementation that says of each token at which character it begins."""
    if not tokenizer.is_fast:
        raise DataError("the tokenizer has no fast implementation (tokenizer.json), which tells where tokens begin")
    from tokenizers import Tokenizer

    fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = False
    fast.post_processor = None  # that of byte-level BPE moves the beginning of a token behind its spaces
    return fast


def _marked(fast: Tokenizer, rendered: Rendered, encoding: Encoding) -> Tokens:
    """Ids and marks of a text, tokenised again in parts where a token lies across the beginning of an answer."""
    places, ids = _places(encoding), np.array(encoding.ids, dtype=np.int64)
    begins = np.array([begin for begin, _ in rendered.spans], dtype=np.int64)
    before = np.searchsorted(places[:, 0], begins) - 1  # the last token that begins before an answer
    across = begins[(before >= 0) & (places[before, 1] > begins)]
    if len(across):
        cuts = [0, *across.tolist(), len(rendered.text)]
        parts = [fast.encode(rendered.text[a:b], add_special_tokens=False) for a, b in pairwise(cuts)]
        places = np.concatenate([_places(part) + cut for part, cut in zip(parts, cuts, strict=False)])
        ids = np.concatenate([np.array(part.ids, dtype=np.int64) for part in parts])
    # A place lies inside a span when an odd number of edges is at or before it.
    edges = np.array(rendered.spans, dtype=np.int64).reshape(-1)
    return Tokens(ids, np.searchsorted(edges, places[:, 0], side="right") % 2 == 1)


def _places(encoding: Encoding) -> np.ndarray:
    """First character of each token and the one behind its last, int64 `[n, 2]`."""
    return np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
