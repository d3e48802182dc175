"""What a teacher said about every token of a training run, kept so that students need no teacher in memory.

One pass of the teacher over the samples that training will draw (`teacher_pass`) leaves for every token either N ids
drawn from its softmax (kind `sampled`, read by `losses.sampled_kl`) or its k most likely ids (`top_k`, read by
`losses.sparse_kl`). Format 2, a directory:

    teacher.json                    the fields of `Contents`, `format`, `bytes_per_token`, size and sha256 of the shards
    shards/<first>.safetensors      `samples_per_shard` samples from number <first> on, in the last shard fewer

A shard of either kind has

    crc32      [samples]                         uint32, of the sample's input ids as little-endian int32
    ids        see below                         uint16, the lower 16 bits of token ids
    ids_high   as `ids`                          uint8, the upper 8 bits; only for vocabularies of more than 65536 ids

With `sampled`, ids stand once for each token that they were drawn for, and one bit for each draw says which:

    ids        [total]                           the different ids of every token, ascending, token after token
    distinct   [samples]                         uint32, how many of them are each sample's
    new        [samples, seq_length * N / 8]     uint8, rounded up: bits, the highest first, one for each of the N draws
                                                 of a token in ascending order: 1 where it differs from the one before
                                                 or is the token's first. A sample's j-th draw is the id at (number of
                                                 ones up to and with bit j) - 1 among the sample's ids.
    surprisal  [samples, seq_length]             float16, nats: mean of -log p over the draws

which is 2 d (3 d with `ids_high`) + N / 8 + 2 bytes for a token with d different ids; of N = 20 draws 9 are different
on English prose. Half precision costs the value of a token's loss 4e-4 nats on average, in either direction, and the
gradient nothing. With `top_k`

    ids        [samples, seq_length, k]          the most likely first
    log_probs  [samples, seq_length, k]          float16, nats: log_softmax(z / temperature), not renormalised over k

which is 4 k bytes. Samples are numbered as the training dataset numbers them, and the ids of sample i depend on the
seed and on i alone: a cache serves any tensor, pipeline and data parallel layout, any micro-batch and any order.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from bielik_nemo import artifacts
from bielik_nemo.errors import CheckpointError, DataError

FORMAT = 2
FILE, SHARDS = "teacher.json", "shards"
SHARD_BYTES = 64 * 2**20
"""Most that a shard may take, and a kill lose; twice as much is held in memory."""


@dataclass(frozen=True)
class Contents:
    """What a cache holds and what it was made of; digests are SHA-256."""

    kind: str  # sampled, top_k
    ids_per_token: int  # N draws, or k
    temperature: float
    samples: int
    seq_length: int
    vocab_size: int
    seed: int  # of the order of samples and of the draws
    dtype: str  # in which the teacher ran
    teacher: str
    tokenizer: str
    data: str
    separate_documents: bool = False  # whether documents before the own one were hidden from the teacher
    samples_per_shard: int = 0  # 0: as many as SHARD_BYTES hold for certain

    def __post_init__(self) -> None:
        if not self.samples_per_shard:
            object.__setattr__(self, "samples_per_shard", max(1, SHARD_BYTES // self.most_bytes_per_sample))

    @property
    def most_bytes_per_sample(self) -> int:
        """Of a sample in which no id was drawn twice."""
        rows, n = self.seq_length, self.ids_per_token
        ids = rows * n * (2 if self.vocab_size <= 2**16 else 3)
        return ids + (2 * rows * n if self.kind == "top_k" else 2 * rows + -(-rows * n // 8) + 4) + 4

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


def pack_sampled(ids: np.ndarray, surprisal: np.ndarray, vocab_size: int) -> dict[str, np.ndarray]:
    """Draws `[b, s, n]` and surprisal `[b, s]` as a shard holds them."""
    drawn = np.sort(ids, axis=-1)
    new = np.ones(drawn.shape, dtype=bool)
    new[..., 1:] = drawn[..., 1:] != drawn[..., :-1]
    return {
        **_planes(drawn[new], vocab_size),
        "distinct": new.sum((1, 2), dtype=np.uint32),
        "new": np.packbits(new.reshape(len(new), -1), axis=-1),
        "surprisal": surprisal.astype(np.float16),
    }


def pack_top_k(ids: np.ndarray, log_probs: np.ndarray, vocab_size: int) -> dict[str, np.ndarray]:
    """Ids and log-probabilities `[b, s, k]` as a shard holds them."""
    return {**_planes(ids, vocab_size), "log_probs": log_probs.astype(np.float16)}


def _planes(ids: np.ndarray, vocab_size: int) -> dict[str, np.ndarray]:
    high = {"ids_high": (ids >> 16).astype(np.uint8)} if vocab_size > 2**16 else {}
    return {"ids": (ids & 0xFFFF).astype(np.uint16), **high}


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
                raise CheckpointError(
                    f"{directory}: teacher cache of format {record['format']}, allowed: {FORMAT}; "
                    "run `bielik-nemo teacher` again"
                )
            self.contents = Contents(**{field.name: record[field.name] for field in fields(Contents)})
            self.files = {name: (entry["size"], entry["sha256"]) for name, entry in record["shards"].items()}
        except (DataError, LookupError, TypeError) as error:
            raise CheckpointError(f"{directory}: not a finished teacher cache ({error})") from None
        for name, (size, _) in self.files.items():
            path = self.directory / name
            if not path.is_file() or path.stat().st_size != size:
                raise CheckpointError(f"{path}: missing or not of {size} bytes; run `bielik-nemo teacher` again")
        self._whole: set[Path] = set()
        self._first, self._file, self._starts = -1, None, np.zeros(1, dtype=np.int64)

    def check(self, **wanted: Any) -> None:
        """Refuse a cache that is not of what a run is about to train on.

        Args:
            wanted: fields of `Contents`; of `samples` the cache may have more.

        Raises:
            CheckpointError: of another kind or temperature, or made of another teacher, tokenizer or data, in another
                order or length; all that differs.
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
        """What the teacher said about one sample, whose input ids are `tokens` `[s]`.

        Returns:
            Ids `[s, n]` int32, with `sampled` each as often as it was drawn, and surprisal `[s]`, with `top_k`
            log-probabilities `[s, k]`; both fp32.

        Raises:
            CheckpointError: the shard is damaged, or the cache holds another text under this number.
        """
        first = sample - sample % self.contents.samples_per_shard
        if self._first != first:
            self._open(first)
        row = sample - first
        if int(self._file.get_slice("crc32")[row]) != crc32(tokens):
            raise CheckpointError(f"{self.directory}: sample {sample} is of another text than the run's")
        if self.contents.kind == "top_k":
            ids, name = self._ids(row), "log_probs"
        else:
            shape = self.contents.seq_length, self.contents.ids_per_token
            new = np.unpackbits(self._file.get_slice("new")[row], count=shape[0] * shape[1])
            distinct = self._ids(slice(*map(int, self._starts[row : row + 2])))
            ids, name = distinct[np.cumsum(new, dtype=np.int64) - 1].reshape(shape), "surprisal"
        return torch.from_numpy(ids), torch.from_numpy(self._file.get_slice(name)[row].astype(np.float32))

    def _ids(self, part: int | slice) -> np.ndarray:
        ids = self._file.get_slice("ids")[part].astype(np.int32)
        if self.contents.vocab_size > 2**16:
            ids |= self._file.get_slice("ids_high")[part].astype(np.int32) << 16
        return ids

    def _open(self, first: int) -> None:
        path = shard_path(self.directory, first)
        name = path.relative_to(self.directory).as_posix()
        if name not in self.files:
            raise CheckpointError(f"{self.directory}: holds {self.contents.samples} samples, none from {first} on")
        if path not in self._whole and artifacts.file_digest(path) != self.files[name][1]:
            raise CheckpointError(
                f"{path}: damaged, for its digest is not the recorded one; run `bielik-nemo teacher` again"
            )
        self._whole.add(path)
        self._first, self._file = first, safe_open(path, framework="numpy")
        if self.contents.kind == "sampled":
            self._starts = np.cumsum([0, *self._file.get_tensor("distinct")], dtype=np.int64)
