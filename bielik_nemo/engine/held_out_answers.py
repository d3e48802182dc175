"""The held-out answers on which every model of a run is measured: the same ones, in the same sequences, each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from bielik_nemo.data import packing
from bielik_nemo.engine import attention, distributed, forward
from bielik_nemo.engine.conversation_data import Corpus, lay

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel


@dataclass(frozen=True)
class HeldOutAnswers:
    """Of every source the first conversations of a directory, up to its part of so many trained tokens."""

    directory: str  # chat/held_out
    seq_length: int
    tokens: int  # trained ones, in which the sources have equal parts
    batch_size: int
    sources: list[str] = field(default_factory=list)  # names for people
    languages: list[str] = field(default_factory=list)  # of the sources, in their order
    packed: bool = True

    def loss(self, model: GPTModel, on_batch: Callable[[], None] = lambda: None) -> float:
        """Mean cross-entropy of the trained tokens, in nats; weights do not count. The same on every rank."""
        return self.measure(model, on_batch)[0]

    def record(self, model: GPTModel) -> dict[str, Any]:
        """What is to be written down of a model: `held_out_loss`, by source and language where there are several."""
        loss, by_source, by_language = self.measure(model)
        parts = {"held_out_loss_by_source": by_source, "held_out_loss_by_language": by_language}
        return {"held_out_loss": loss} | {name: part for name, part in parts.items() if len(part) > 1}

    def measure(
        self, model: GPTModel, on_batch: Callable[[], None] = lambda: None
    ) -> tuple[float, dict[str, float], dict[str, float]]:
        """Mean over all trained tokens, by source, and by language.

        Args:
            model: this rank's part.
            on_batch: called once a batch is through.
        """
        from megatron.core import parallel_state
        from megatron.core.utils import get_batch_on_this_cp_rank

        totals = torch.zeros(len(self.sources), 2, dtype=torch.float64, device=distributed.device())

        def add(losses: Tensor, batch: Any) -> None:
            mask = get_batch_on_this_cp_rank({"loss_mask": batch["loss_mask"].to(losses.device)})["loss_mask"] > 0
            totals[batch["source"]] += torch.stack([(losses.double() * mask).sum(), mask.sum()])

        forward.passes(model, self.batches(), add, on_batch)
        if parallel_state.get_context_parallel_world_size() > 1:
            torch.distributed.all_reduce(totals, group=parallel_state.get_context_parallel_group())
        found = dict(zip(zip(self.sources, self.languages, strict=True), forward.from_last_stage(totals), strict=True))

        def mean(chosen: list[Tensor]) -> float:
            total, count = torch.stack(chosen).sum(0).tolist()
            return total / count

        named = {language: [t for (_, other), t in found.items() if other == language] for _, language in found}
        return (
            mean(list(found.values())),
            {source: mean([total]) for (source, _), total in found.items()},
            {language or "unnamed": mean(parts) for language, parts in named.items()},
        )

    def batches(self) -> Iterator[dict[str, Any]]:
        """The batches of one measurement; `source` is the number of the one that a batch is of."""
        corpus = Corpus(self.directory, self.seq_length)
        # Transformer Engine takes the bounds of one sequence at a time.
        size = 1 if self.packed and attention.HAVE_TE else self.batch_size
        for source in range(len(corpus.names)):
            items = self._first(corpus, source)
            lengths = corpus.lengths[items]
            packs = packing.pack(lengths, self.seq_length) if self.packed else packing.alone(len(items))
            samples = [lay([corpus[items[i]] for i in pack], self.seq_length, self.packed) for pack in packs]
            for start in range(0, len(samples), size):
                yield default_collate(samples[start : start + size]) | {"source": source}

    def _first(self, corpus: Corpus, source: int) -> np.ndarray:
        wanted, chosen = self.tokens / len(corpus.names), []
        for item in corpus.usable[corpus.source[corpus.usable] == source].tolist():
            chosen.append(item)
            wanted -= np.count_nonzero(corpus[item].weights[1:])
            if wanted <= 0:
                break
        return np.array(chosen, dtype=np.int64)
