"""Rollouts from the model that is trained, where it is: Megatron-Core's inference, whatever the layout.

A batch reads each of its prompts once; what was read is repeated for the samples of each, and then one token of every
answer is drawn at a time. Answers that end leave the batch. The first tensor rank of the last pipeline stage draws, and
the others hear of it, since their rounding may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bielik_nemo.engine import forward, kv_cache
from bielik_nemo.engine.rollout import Answer, Sampling, check_lengths
from bielik_nemo.engine.sampling import draw, noise

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

SPARE_TOKENS = 8
"""In which a stop text is looked for beside its own: some tokens are text only with their neighbours."""


@dataclass
class _Row:
    """An answer on its way."""

    prompt: int  # number
    sample: int
    noise: np.ndarray  # fp64 [max_tokens]
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)


class MegatronEngine:
    """A `RolloutEngine` that samples from a Megatron model.

    Args:
        model: this rank's part, with context parallel size 1 and without sequence parallelism; read where it is.
        vocab_size: true vocabulary size; padding is never drawn.
        decode: text of tokens, in which stop texts are looked for.
        batch_size: answers that are sampled side by side.
        cache: False: every token reads the whole text again, by the forward pass that training uses. What the other way
            is compared with.
    """

    def __init__(
        self,
        model: GPTModel,
        vocab_size: int,
        decode: Callable[[Sequence[int]], str],
        batch_size: int,
        cache: bool = True,
    ):
        self.model, self.vocab_size, self.decode, self.batch_size = model, vocab_size, decode, batch_size
        self.reader = kv_cache.CachedReader if cache else RepeatedReader

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], keys: Sequence[int], samples: int, sampling: Sampling
    ) -> Iterator[tuple[int, list[Answer]]]:
        """Answers to prompts, as they are finished; see `RolloutEngine.generate`.

        The model is in evaluation mode until the last was taken.

        Raises:
            DataError: see `check_lengths`.
        """
        check_lengths(prompts, sampling.max_tokens, self.model.max_sequence_length)
        by_length = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))  # few pads in a batch
        rows = [(number, sample) for number in by_length for sample in range(samples)]
        size = self.batch_size // samples * samples or self.batch_size
        answers: list[dict[int, Answer]] = [{} for _ in prompts]
        training = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(rows), size):
                batch = [
                    _Row(number, sample, noise(sampling.seed, keys[number], sample, sampling.max_tokens))
                    for number, sample in rows[start : start + size]
                ]
                for row, ended in self._batch(prompts, batch, sampling):
                    own = answers[row.prompt]
                    own[row.sample] = Answer(row.ids, row.log_probs, ended)
                    if len(own) == samples:
                        yield row.prompt, [own[sample] for sample in range(samples)]
        finally:
            self.model.train(training)

    def _batch(
        self, prompts: Sequence[Sequence[int]], rows: list[_Row], sampling: Sampling
    ) -> Iterator[tuple[_Row, bool]]:
        """Rows as they are finished, and whether the model ended them."""
        numbers = list(dict.fromkeys(row.prompt for row in rows))
        reader = self.reader(self.model, [len(prompts[number]) for number in numbers], sampling.max_tokens)
        longest = max(len(prompts[number]) for number in numbers)
        logits = reader.read(
            self._tensor([[0] * (longest - len(prompts[n])) + list(prompts[n]) for n in numbers])  # pads before
        )
        copies = [numbers.index(row.prompt) for row in rows]
        reader.repeat(copies)
        logits = None if logits is None else logits[copies]
        while True:
            tokens, log_probs = self._draw(logits, rows, sampling)
            finished = []
            for row, token, log_prob in zip(rows, tokens, log_probs, strict=True):
                row.ids.append(token)
                row.log_probs.append(log_prob)
                ended = self._ends(row.ids, sampling)
                finished.append(ended or len(row.ids) == sampling.max_tokens)
                if finished[-1]:
                    yield row, ended
            count = finished.count(False)
            if count == 0:
                return
            if count < len(rows):  # the last ones take the places of those that left
                free = [i for i in range(count) if finished[i]]
                moved = [i for i in range(count, len(rows)) if not finished[i]]
                for place, row in zip(free, moved, strict=True):
                    rows[place] = rows[row]
                del rows[count:]
                reader.move(moved, free, count)
            logits = reader.read(self._tensor([row.ids[-1:] for row in rows]))

    def _draw(self, logits: Tensor | None, rows: list[_Row], sampling: Sampling) -> tuple[list[int], list[float]]:
        """The next token of each row and its log-probability, the same on every rank.

        Collectives: two numbers for each row are broadcast in the last stage's tensor-parallel group, then from that
        stage to the others.
        """
        from megatron.core import parallel_state

        place = len(rows[0].ids)
        drawn = torch.empty(2, len(rows), dtype=torch.float64, device=self._device())
        if logits is not None:
            if parallel_state.get_tensor_model_parallel_rank() == 0:
                numbers = self._tensor(np.array([row.noise[place] for row in rows]))
                drawn = torch.stack([each.double() for each in draw(logits[:, : self.vocab_size], numbers, sampling)])
            if parallel_state.get_tensor_model_parallel_world_size() > 1:
                torch.distributed.broadcast(
                    drawn,
                    src=parallel_state.get_tensor_model_parallel_src_rank(),
                    group=parallel_state.get_tensor_model_parallel_group(),
                )
        tokens, log_probs = forward.from_last_stage(drawn).tolist()
        return [int(token) for token in tokens], log_probs

    def _ends(self, ids: list[int], sampling: Sampling) -> bool:
        """Whether the last token ends the answer."""
        if ids[-1] in sampling.stop_ids:
            return True
        if not sampling.stop:
            return False
        text = self.decode(ids[-SPARE_TOKENS - max(len(stop.encode()) for stop in sampling.stop) :])
        return any(stop in text for stop in sampling.stop)

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _tensor(self, values: Sequence | np.ndarray) -> Tensor:
        return torch.tensor(values, device=self._device())


class RepeatedReader:
    """A `CachedReader` that keeps nothing but the tokens, and reads them all again each time."""

    def __init__(self, model: GPTModel, lengths: Sequence[int], room: int):
        self.model = model
        self.pads = [max(lengths) - length for length in lengths]
        self.tokens = torch.empty(len(lengths), 0, dtype=torch.int64)

    def read(self, tokens: Tensor) -> Tensor | None:
        """See `CachedReader.read`."""
        from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

        self.tokens = torch.cat([self.tokens.to(tokens.device), tokens], dim=1)
        texts = torch.stack([row.roll(-pad) for row, pad in zip(self.tokens, self.pads, strict=True)])  # pads behind
        last = [texts.shape[1] - 1 - pad for pad in self.pads]

        def consume(logits: Tensor) -> Tensor:
            return gather_from_tensor_model_parallel_region(logits[range(len(last)), last].contiguous())

        found = forward.run(self.model, [texts], consume)
        return found[0] if found else None

    def repeat(self, rows: Sequence[int]) -> None:
        """See `CachedReader.repeat`."""
        self.tokens, self.pads = self.tokens[rows], [self.pads[row] for row in rows]

    def move(self, sources: Sequence[int], targets: Sequence[int], count: int) -> None:
        """See `CachedReader.move`."""
        rows = list(range(count))
        for source, target in zip(sources, targets, strict=True):
            rows[target] = source
        self.repeat(rows)
