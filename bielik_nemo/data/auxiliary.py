"""Embeddings of a new vocabulary's tokens, learnt from text alone by fastText (gensim), to tell which tokens are alike.

As in the authors' program for FOCUS: CBOW over the text as tokens, with the n-grams of their names, 10 negatives and
fastText's own rate, window and subsampling. One thread, so that the same text and seed give the same embeddings; fewer
buckets for n-grams than fastText's two million, since a vocabulary of tokens has some hundred thousand.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from bielik_nemo import ui
from bielik_nemo.config_tokenizer import SwapTokenizer
from bielik_nemo.data.tokenizer import encode_all

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from bielik_nemo.data.text import Document

SENTENCE = 1000
"""Tokens that gensim gets at a time, of the 10,000 at which it would cut."""
BUCKETS = 2**18


class Sentences:
    """Text as lists of tokens' names, as often as it is asked for, kept as 4 bytes a token."""

    def __init__(self, ids: array[int], names: list[str]):
        self.ids, self.names = ids, names

    def __iter__(self) -> Iterator[list[str]]:
        for start in range(0, len(self.ids), SENTENCE):
            yield [self.names[index] for index in self.ids[start : start + SENTENCE]]


def in_turn(sources: Iterable[Iterable[Document]]) -> Iterator[Document]:
    """One document of each source after another, as long as there are any."""
    remaining = [iter(source) for source in sources]
    while remaining:
        drawn = [(source, next(source, None)) for source in remaining]
        remaining = [source for source, document in drawn if document is not None]
        yield from (document for _, document in drawn if document is not None)


def read(tokenizer: PreTrainedTokenizerBase, documents: Iterable[Document], tokens: int) -> array[int]:
    """The first tokens of documents, without those that end them."""
    found = array("I")
    with ui.progress("documents") as advance:
        for _, ids in encode_all(tokenizer, documents):
            found.extend(ids[:-1])
            advance()
            if len(found) >= tokens:
                break
    return found[:tokens]


def learn(ids: array[int], names: list[str], settings: SwapTokenizer, seed: int) -> tuple[list[int], Tensor]:
    """The tokens that are seen often enough, in order, and their embeddings `[n, dimensions]`, fp32.

    Args:
        ids: text as tokens.
        names: of all tokens, by id; no two are the same.
        settings: of the embeddings.
        seed: of their beginnings.
    """
    import torch
    from gensim.models import FastText
    from gensim.models.callbacks import CallbackAny2Vec

    counts = torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=len(names))
    seen = [index for index, count in enumerate(counts.tolist()) if count >= settings.min_count]
    if not seen:
        return [], torch.zeros(0, settings.dimensions)

    class Epochs(CallbackAny2Vec):
        def on_epoch_end(self, model: FastText) -> None:
            advance()

    with ui.progress("auxiliary embeddings", settings.epochs) as advance:
        model = FastText(
            sentences=Sentences(ids, names),
            vector_size=settings.dimensions,
            epochs=settings.epochs,
            min_count=settings.min_count,
            sg=0,
            negative=10,
            alpha=0.05,
            sample=1e-4,
            bucket=BUCKETS,
            workers=1,
            seed=seed,
            callbacks=[Epochs()],
        )
    return seen, torch.stack([torch.from_numpy(model.wv[names[index]].copy()) for index in seen])
