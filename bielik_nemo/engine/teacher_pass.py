"""The pass of a teacher over the samples of a training run, which fills a `teacher_cache`.

A shard appears only when it is whole and names in its metadata what it holds, so that an interrupted pass goes on after
the shards it has finished. Data-parallel ranks have different shards, the other ranks of a model work on one together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor
from torch.utils.data import default_collate

from bielik_nemo import artifacts
from bielik_nemo.engine import attention, distributed, forward, teacher_cache
from bielik_nemo.engine import model as models
from bielik_nemo.engine.teacher_cache import Contents, shard_path
from bielik_nemo.errors import GateError
from bielik_nemo.losses import draw, top_k

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel


def uniforms(seed: int, sample: int, tokens: int, n: int) -> Tensor:
    """The random numbers of one sample `[s, n]`, float64 in [0, 1): of the seed and the sample's number alone.

    A token's n numbers are evenly spaced from one random start (systematic sampling). An id of probability p is then
    drawn n p times, rounded down or up, and n p times in the mean, as independent numbers would have it: the estimate
    stays unbiased, and no unbiased one from n draws has counts of less variance.
    """
    start = np.random.default_rng([seed, sample]).random((tokens, 1))
    return torch.from_numpy(np.minimum((np.arange(n) + start) / n, 1 - 2**-53))


def to_do(directory: Path, contents: Contents) -> list[range]:
    """This data-parallel rank's part of the shards that are not there as these contents want them; all ranks must ask.

    What else is among the shards is removed.
    """
    from megatron.core import parallel_state

    wanted = json.dumps(asdict(contents))
    found = []
    for shard in contents.shards():
        try:
            with safe_open(shard_path(directory, shard.start), framework="numpy") as file:
                whole = file.metadata() == {"contents": wanted}
        except (OSError, SafetensorError):
            whole = False
        if not whole:
            found.append(shard)
    distributed.barrier()  # nobody writes before all have looked
    if distributed.rank() == 0:
        (directory / teacher_cache.SHARDS).mkdir(parents=True, exist_ok=True)
        kept = {shard_path(directory, shard.start) for shard in contents.shards() if shard not in found}
        for path in set((directory / teacher_cache.SHARDS).iterdir()) - kept:
            path.unlink()
    distributed.barrier()
    return found[parallel_state.get_data_parallel_rank() :: parallel_state.get_data_parallel_world_size()]


def fill(
    model: GPTModel,
    dataset: Any,
    directory: Path,
    contents: Contents,
    shards: list[range],
    micro_batch_size: int,
    on_batch: Callable[[], None] = lambda: None,
) -> None:
    """Run the teacher over the samples of some shards and write them; data-parallel ranks have different ones.

    Args:
        model: this rank's part of the teacher.
        dataset: `dataset[i]` is sample i as `TextDataset` gives it, its input ids `["tokens"]` `[s]`.
        directory: of the cache.
        contents: what it is to hold.
        shards: which of `contents.shards()`.
        micro_batch_size: samples per forward pass.
        on_batch: called once a forward pass is through.

    Raises:
        GateError: a logit is not finite.
    """
    from megatron.core import parallel_state

    writes = parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0
    keep = {"sampled": _sampled, "top_k": _top_k}[contents.kind]
    wanted = {"tokens", "position_ids", *attention.KEYS}
    for shard in shards:
        parts: list[dict[str, np.ndarray]] = []
        sums = np.empty(len(shard), dtype=np.uint32)
        for first in range(shard.start, shard.stop, micro_batch_size):
            samples = range(first, min(first + micro_batch_size, shard.stop))
            rows = [dataset[i] for i in samples]
            sums[first - shard.start :][: len(samples)] = [teacher_cache.crc32(row["tokens"]) for row in rows]
            batch = default_collate([{name: row[name] for name in row if name in wanted} for row in rows])
            parts += forward.passes(model, [batch], lambda out, _, samples=samples: keep(out, samples, contents))
            on_batch()
        if writes:
            path = shard_path(directory, shard.start)
            unfinished = path.with_name(f".{path.name}.partial")
            tensors = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            save_file({**tensors, "crc32": sums}, unfinished, metadata={"contents": json.dumps(asdict(contents))})
            os.replace(unfinished, path)


def _sampled(logits: Tensor, samples: range, contents: Contents) -> dict[str, np.ndarray]:
    """What is kept of logits `[b, s, v/tp]`: ids drawn from their softmax."""
    numbers = [uniforms(contents.seed, i, contents.seq_length, contents.ids_per_token) for i in samples]
    ids, surprisal = draw(
        logits.flatten(0, 1),
        torch.cat(numbers).to(logits.device),
        vocab_size=contents.vocab_size,
        tp_group=models.tp_group(),
    )
    return teacher_cache.pack_sampled(*_arrays(ids, surprisal, samples), contents.vocab_size)


def _top_k(logits: Tensor, samples: range, contents: Contents) -> dict[str, np.ndarray]:
    """What is kept of logits `[b, s, v/tp]`: the most likely ids."""
    ids, log_probs = top_k(
        logits.flatten(0, 1),
        contents.ids_per_token,
        temperature=contents.temperature,
        vocab_size=contents.vocab_size,
        tp_group=models.tp_group(),
    )
    return teacher_cache.pack_top_k(*_arrays(ids, log_probs, samples), contents.vocab_size)


def _arrays(ids: Tensor, values: Tensor, samples: range) -> list[np.ndarray]:
    """Of tensors `[b * s, ...]`, arrays `[b, s, ...]`."""
    if not values.isfinite().all():
        raise GateError(f"teacher: its logits for samples {samples[0]} to {samples[-1]} are not finite")
    return [each.unflatten(0, (len(samples), -1)).cpu().numpy() for each in (ids, values)]


def finish(directory: Path, contents: Contents) -> float:
    """Write `teacher.json` once all shards are there, on rank 0; returns bytes per token."""
    distributed.barrier()
    paths = [shard_path(directory, shard.start) for shard in contents.shards()]
    size = sum(path.stat().st_size for path in paths) / (contents.samples * contents.seq_length)
    if distributed.rank() == 0:
        files = artifacts.digest_files(directory, paths)
        shards = {name: {key: entry[key] for key in ("size", "sha256")} for name, entry in files.items()}
        record = {"format": teacher_cache.FORMAT, **asdict(contents), "bytes_per_token": round(size, 2)}
        artifacts.write_json(directory / teacher_cache.FILE, {**record, "shards": shards})
    return size
