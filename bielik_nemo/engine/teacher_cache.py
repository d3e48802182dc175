"""What a teacher said about every token of a training run, kept so that students need no teacher in memory.

One pass of the teacher over the samples that training will draw leaves, for every token, N ids drawn with replacement
from its softmax and their mean surprisal (`losses.sampled_kl`). Format 1, a directory:

    teacher.json                    the fields of `Contents`, `format`, `bytes_per_token`, size and sha256 of the shards
    shards/<first>.safetensors      `samples_per_shard` samples from number <first> on, in the last shard fewer:
        ids        [samples, seq_length, samples_per_token]  uint16 for vocabularies of at most 65536 ids, else int32
        surprisal  [samples, seq_length]                     float32, nats: mean of -log p over the ids
        crc32      [samples]                                 uint32, of the sample's input ids as little-endian int32

Samples are numbered as the training dataset numbers them, and the ids of sample i depend on the seed and on i alone: a
cache serves any tensor, pipeline and data parallel layout, any micro-batch and any order. A shard appears only when it
is whole and names in its metadata what it holds, so that an interrupted pass goes on after the shards it has finished.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from bielik_nemo import artifacts
from bielik_nemo.engine import distributed, forward
from bielik_nemo.engine import model as models
from bielik_nemo.errors import CheckpointError, DataError, GateError
from bielik_nemo.losses import draw

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

FORMAT = 1
FILE, SHARDS = "teacher.json", "shards"
SHARD_BYTES = 64 * 2**20
"""Size of a shard, the most that a kill loses; twice as much is held in memory."""


@dataclass(frozen=True)
class Contents:
    """What a cache holds and what it was made of; digests are SHA-256."""

    samples: int
    seq_length: int
    samples_per_token: int
    vocab_size: int
    seed: int  # of the order of samples and of the draws
    dtype: str  # in which the teacher ran
    teacher: str
    tokenizer: str
    data: str
    samples_per_shard: int = 0  # 0: as many as SHARD_BYTES hold

    def __post_init__(self) -> None:
        if not self.samples_per_shard:
            fitting = SHARD_BYTES // (self.seq_length * self.bytes_per_token)
            object.__setattr__(self, "samples_per_shard", max(1, fitting))

    @property
    def id_dtype(self) -> type[np.integer]:
        """Smallest type that holds every token id."""
        return np.uint16 if self.vocab_size <= 2**16 else np.int32

    @property
    def bytes_per_token(self) -> int:
        """Of ids and surprisal; the rest is a few bytes per sample."""
        return self.samples_per_token * np.dtype(self.id_dtype).itemsize + 4

    def shards(self) -> list[range]:
        """Sample numbers of each shard."""
        size = self.samples_per_shard
        return [range(first, min(first + size, self.samples)) for first in range(0, self.samples, size)]


def shard_path(directory: Path, first: int) -> Path:
    """File of the shard that begins with sample `first`."""
    return directory / SHARDS / f"{first:09d}.safetensors"


def crc32(tokens: Tensor) -> int:
    """Checksum of a sample's input ids `[s]`."""
    return zlib.crc32(tokens.numpy().astype("<i4").tobytes())


def uniforms(seed: int, sample: int, shape: tuple[int, ...]) -> Tensor:
    """The random numbers of one sample, float64 in [0, 1): of the seed and the sample's number, and nothing else."""
    return torch.from_numpy(np.random.default_rng([seed, sample]).random(shape))


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
        (directory / SHARDS).mkdir(parents=True, exist_ok=True)
        kept = {shard_path(directory, shard.start) for shard in contents.shards() if shard not in found}
        for path in set((directory / SHARDS).iterdir()) - kept:
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
        dataset: `dataset[i]["tokens"]` are the input ids `[s]` of sample i.
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
    for shard in shards:
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        sums = np.empty(len(shard), dtype=np.uint32)
        for first in range(shard.start, shard.stop, micro_batch_size):
            samples = range(first, min(first + micro_batch_size, shard.stop))
            tokens = [dataset[i]["tokens"] for i in samples]
            sums[first - shard.start :][: len(samples)] = [crc32(each) for each in tokens]
            sampled = partial(_sampled, samples=samples, contents=contents)
            parts += forward.run(model, [torch.stack(tokens)], sampled)
            on_batch()
        if writes:
            ids, surprisal = map(np.concatenate, zip(*parts, strict=True))
            path = shard_path(directory, shard.start)
            unfinished = path.with_name(f".{path.name}.partial")
            tensors = {"ids": ids, "surprisal": surprisal, "crc32": sums}
            save_file(tensors, unfinished, metadata={"contents": json.dumps(asdict(contents))})
            os.replace(unfinished, path)


def _sampled(logits: Tensor, samples: range, contents: Contents) -> tuple[np.ndarray, np.ndarray]:
    """Ids `[b, s, n]` and surprisal `[b, s]` of logits `[b, s, v/tp]`, as they are stored."""
    shape = (contents.seq_length, contents.samples_per_token)
    numbers = torch.cat([uniforms(contents.seed, i, shape) for i in samples]).to(logits.device)
    ids, surprisal = draw(logits.flatten(0, 1), numbers, vocab_size=contents.vocab_size, tp_group=models.tp_group())
    if not surprisal.isfinite().all():
        raise GateError(f"teacher: its logits for samples {samples[0]} to {samples[-1]} are not finite")
    stored = ids.view(-1, *shape).cpu().numpy().astype(contents.id_dtype)
    return stored, surprisal.view(-1, contents.seq_length).cpu().numpy()


def finish(directory: Path, contents: Contents) -> float:
    """Write `teacher.json` once all shards are there, on rank 0; returns bytes per token."""
    distributed.barrier()
    paths = [shard_path(directory, shard.start) for shard in contents.shards()]
    size = sum(path.stat().st_size for path in paths) / (contents.samples * contents.seq_length)
    if distributed.rank() == 0:
        files = artifacts.digest_files(directory, paths)
        shards = {name: {key: entry[key] for key in ("size", "sha256")} for name, entry in files.items()}
        record = {"format": FORMAT, **asdict(contents), "bytes_per_token": round(size, 2), "shards": shards}
        artifacts.write_json(directory / FILE, record)
    return size


class TeacherCache:
    """A finished cache, read through memory maps; the shard that was read last stays open.

    Args:
        directory: of the cache.

    Raises:
        CheckpointError: not a finished cache, of another format, or a shard is missing or has another size.
    """

    def __init__(self, directory: Path | str):
        self.directory = Path(directory)
        try:
            record = artifacts.read_json(self.directory / FILE)
            if record["format"] != FORMAT:
                raise CheckpointError(f"{directory}: teacher cache of format {record['format']}, allowed: {FORMAT}")
            self.contents = Contents(**{field.name: record[field.name] for field in fields(Contents)})
            self.files = {name: (entry["size"], entry["sha256"]) for name, entry in record["shards"].items()}
        except (DataError, LookupError, TypeError) as error:
            raise CheckpointError(f"{directory}: not a finished teacher cache ({error})") from None
        for name, (size, _) in self.files.items():
            path = self.directory / name
            if not path.is_file() or path.stat().st_size != size:
                raise CheckpointError(f"{path}: missing or not of {size} bytes; run `bielik-nemo teacher` again")
        self._first, self._open = -1, None

    def check(self, **wanted: Any) -> None:
        """Refuse a cache that is not of what a run is about to train on.

        Args:
            wanted: fields of `Contents`; of `samples` the cache may have more.

        Raises:
            CheckpointError: made of another teacher, tokenizer or data, in another order or length; all that differs.
        """
        found = asdict(self.contents)
        differing = [
            f"{name}: the cache has {found[name]}, this run wants {value}"
            for name, value in wanted.items()
            if found[name] != value and not (name == "samples" and found[name] > value)
        ]
        if differing:
            raise CheckpointError(f"{self.directory}: cache of another run; " + "; ".join(differing))

    def read(self, sample: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Ids `[s, n]` int32 and surprisal `[s]` fp32 of one sample, whose input ids are `tokens` `[s]`.

        Raises:
            CheckpointError: the shard is damaged, or the cache holds another text under this number.
        """
        first = sample - sample % self.contents.samples_per_shard
        if self._first != first:
            self._open, self._first = self._shard(first), first
        row = sample - first
        if int(self._open.get_slice("crc32")[row]) != crc32(tokens):
            raise CheckpointError(f"{self.directory}: sample {sample} is of another text than the run's")
        ids = self._open.get_slice("ids")[row].astype(np.int32)
        return torch.from_numpy(ids), torch.from_numpy(np.array(self._open.get_slice("surprisal")[row]))

    def _shard(self, first: int) -> Any:
        path = shard_path(self.directory, first)
        name = path.relative_to(self.directory).as_posix()
        if name not in self.files:
            raise CheckpointError(f"{self.directory}: holds {self.contents.samples} samples, none from {first} on")
        if artifacts.file_digest(path) != self.files[name][1]:
            raise CheckpointError(
                f"{path}: damaged, for its digest is not the recorded one; run `bielik-nemo teacher` again"
            )
        return safe_open(path, framework="numpy")
