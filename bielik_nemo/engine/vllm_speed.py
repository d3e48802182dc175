"""Generation by vLLM, timed: what answers of one token take, and what those of full length take.

The engine runs in this process, so that its memory can be told, and reserves keys and values for the largest load and
no more: several models share a GPU. Written against the documented interface of vLLM 0.11.0.

Deviation from transformers_speed: the time to the first token is that of a request of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine.model import DTYPES

BLOCK = 16  # tokens of a block of vLLM's cache


class VLLMEngine:
    """A Hugging Face directory as vLLM runs it, with CUDA graphs and without the cache of prefixes.

    Args:
        directory: of the model.
        dtype: of its weights and its cache.
        loads: that it will get: tokens of prompt and answer together, and how many side by side.
    """

    def __init__(self, directory: Path, dtype: str, loads: Sequence[tuple[int, int]]):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        import vllm

        self.request = vllm.SamplingParams
        self.vllm = vllm.LLM(
            model=str(directory),
            skip_tokenizer_init=True,
            dtype=dtype,
            max_model_len=max(length for length, _ in loads),
            max_num_seqs=max(concurrency for _, concurrency in loads),
            enable_prefix_caching=False,  # the same prompts come again
            gpu_memory_utilization=0.1,  # that must be free at the start; the next line decides
            kv_cache_memory_bytes=cache_bytes(Architecture.from_hf(directory), dtype, loads),
        )

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[float, float]:
        """Seconds until every prompt has its first token, and until it has so many."""
        return self._seconds(prompts, 1), self._seconds(prompts, tokens)

    def _seconds(self, prompts: Sequence[Sequence[int]], tokens: int) -> float:
        request = self.request(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        self.vllm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], request, use_tqdm=False)
        return time.perf_counter() - start


def cache_bytes(shape: Architecture, dtype: str, loads: Sequence[tuple[int, int]]) -> int:
    """Of keys and values, in whole blocks, for the load that needs most, and for one block that vLLM keeps free."""
    blocks = max(concurrency * -(-length // BLOCK) for length, concurrency in loads)
    return (blocks + 1) * BLOCK * shape.kv_cache_bytes_per_token(DTYPES[dtype].itemsize)
