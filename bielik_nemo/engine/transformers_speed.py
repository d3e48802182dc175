"""Generation by plain transformers, timed: one pass over the prompts, then a step for each further token.

Greedy, with the cache that `generate` takes by default (which grows by concatenation), SDPA attention, and all answers
of one length: no token ends them. Between steps nothing is copied from the device.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from bielik_nemo.engine import bandwidth, distributed
from bielik_nemo.engine.model import DTYPES


class TransformersEngine:
    """A Hugging Face directory as transformers runs it.

    Args:
        directory: of the model.
        dtype: of its weights and its cache.
        loads: not used: transformers takes memory as it needs it.
    """

    def __init__(self, directory: Path, dtype: str, loads: object = None):
        self.model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=DTYPES[dtype], local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        self.model.to(distributed.device()).eval()

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[float, float]:
        """Seconds until every prompt, all of one length, has its first token, and until it has so many."""
        bandwidth.wait()
        start = time.perf_counter()
        cache = DynamicCache()
        ids = self._next(torch.tensor(prompts, device=self.model.device), cache)
        bandwidth.wait()
        first = time.perf_counter() - start
        for _ in range(tokens - 1):
            ids = self._next(ids, cache)
        bandwidth.wait()
        return first, time.perf_counter() - start

    def _next(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """The likeliest next token of every row, `[b, 1]`; the cache gets what was read."""
        logits = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1].argmax(-1, keepdim=True)
