"""What a cache holds is read back as it was, in any order, or refused when it is stale or damaged.

Made by `ranks.py`: 24 samples of 32 tokens, 50 draws a token or the best 7 ids at temperature 2, five samples a shard,
so that the last of five has four.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from bielik_nemo import artifacts
from bielik_nemo.engine import teacher_cache
from bielik_nemo.engine.teacher_cache import Contents, TeacherCache
from bielik_nemo.errors import CheckpointError

FIRSTS = [0, 5, 10, 15, 20]
KINDS = ["sampled", "top_k"]
ORIGIN = {"seed": 0, "dtype": "float32", "teacher": "a", "tokenizer": "b", "data": "c"}


def load(directory: Path) -> dict[str, np.ndarray]:
    """All samples of a cache."""
    shards = [load_file(directory / "shards" / f"{first:09d}.safetensors") for first in FIRSTS]
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def write(directory: Path, contents: Contents, texts: Tensor, packed: dict[str, np.ndarray]) -> TeacherCache:
    """A cache of one shard, by hand."""
    path = directory / "shards" / "000000000.safetensors"
    path.parent.mkdir(parents=True)
    save_file({**packed, "crc32": np.array([teacher_cache.crc32(text) for text in texts], np.uint32)}, path)
    shards = {"shards/000000000.safetensors": {"size": path.stat().st_size, "sha256": artifacts.file_digest(path)}}
    artifacts.write_json(directory / "teacher.json", {"format": 2, **asdict(contents), "shards": shards})
    return TeacherCache(directory)


@pytest.fixture(scope="module", params=KINDS)
def each(request, single) -> Path:
    """A cache of either kind."""
    single["teach"]
    return single.path / f"teacher {request.param}"


@pytest.fixture(scope="module")
def cache(single) -> Path:
    single["teach"]
    return single.path / "teacher sampled"


@pytest.fixture
def copy(cache, tmp_path) -> Path:
    shutil.copytree(cache, tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture(scope="module")
def texts(single) -> Tensor:
    """The first four samples as the trainer received them."""
    single["distill cached"]
    return torch.load(single.path / "cached" / "batch.pt", weights_only=True)["tokens"]


def test_packed_by_hand():
    """Two samples of two tokens, four draws each, ids of a vocabulary of 70,000 = 1 * 65,536 + 4,464.

    Ascending, with * at every new one: *5 5 *7 *69000 and *0 0 0 0; *1 *2 *3 *4 and *9 9 *65536 65536. The bits are
    1011 1000 = 184 and 1111 1010 = 250. Of 69,000 = 65,536 + 3,464 the planes hold 3464 and 1.
    """
    ids = np.array([[[7, 5, 69000, 5], [0, 0, 0, 0]], [[4, 3, 2, 1], [65536, 9, 65536, 9]]])
    packed = teacher_cache.pack_sampled(ids, np.full((2, 2), 1.5, np.float32), 70_000)
    assert {name: array.tolist() for name, array in packed.items()} == {
        "ids": [5, 7, 3464, 0, 1, 2, 3, 4, 9, 0],
        "ids_high": [0, 0, 1, 0, 0, 0, 0, 0, 0, 1],
        "distinct": [4, 6],
        "new": [[184], [250]],
        "surprisal": [[1.5, 1.5], [1.5, 1.5]],
    }
    assert packed["surprisal"].dtype == np.float16
    assert "ids_high" not in teacher_cache.pack_sampled(ids[..., 1:2], np.zeros((2, 2)), 65_536)
    packed = teacher_cache.pack_top_k(ids[:1, :, :3], -np.ones((1, 2, 3)), 70_000)
    assert {name: array.tolist() for name, array in packed.items()} == {
        "ids": [[[7, 5, 3464], [0, 0, 0]]],
        "ids_high": [[[0, 0, 1], [0, 0, 0]]],
        "log_probs": [[[-1, -1, -1], [-1, -1, -1]]],
    }


@pytest.mark.parametrize("vocab_size", [300, 2**16, 2**16 + 1, 2**24])
@pytest.mark.parametrize(("kind", "n"), [("sampled", 1), ("sampled", 5), ("sampled", 300), ("top_k", 4)])
def test_what_was_packed_is_read(kind: str, n: int, vocab_size: int, tmp_path):
    """Four samples of 11 tokens, so that bits end within a byte; few ids and the last ones of the vocabulary."""
    random = np.random.default_rng(n)
    ids = random.choice([0, 1, 2, 255, 256, vocab_size - 2, vocab_size - 1], (4, 11, n))
    values = random.random((4, 11) if kind == "sampled" else (4, 11, n)).astype(np.float32)
    pack = {"sampled": teacher_cache.pack_sampled, "top_k": teacher_cache.pack_top_k}[kind]
    texts = torch.arange(44).view(4, 11)
    contents = Contents(kind, n, 1.0, 4, 11, vocab_size, **ORIGIN)
    reader = write(tmp_path, contents, texts, pack(ids, values, vocab_size))
    for i in (2, 0, 3, 1, 3):
        found, numbers = reader.read(i, texts[i])
        assert (found.dtype, numbers.dtype) == (torch.int32, torch.float32)
        assert np.array_equal(found.numpy(), np.sort(ids[i]) if kind == "sampled" else ids[i])
        assert np.array_equal(numbers.numpy(), values[i].astype(np.float16).astype(np.float32))
    size = (tmp_path / "shards" / "000000000.safetensors").stat().st_size
    assert size < 4 * contents.most_bytes_per_sample + 1024


def test_files_and_types(each, single):
    """The bytes of what is said beside; at most 8 of them to round up the header of each of the five shards."""
    assert sorted(path.name for path in (each / "shards").iterdir()) == [f"{first:09d}.safetensors" for first in FIRSTS]
    found, kind = load(each), each.name.split()[1]
    total = len(found["ids"])
    kinds = {
        "sampled": {
            "ids": ("uint16", (total,)),
            "distinct": ("uint32", (24,)),
            "new": ("uint8", (24, 200)),  # 32 tokens * 50 draws / 8
            "surprisal": ("float16", (24, 32)),
            "crc32": ("uint32", (24,)),
        },
        "top_k": {"ids": ("uint16", (24, 32, 7)), "log_probs": ("float16", (24, 32, 7)), "crc32": ("uint32", (24,))},
    }
    assert {name: (str(array.dtype), array.shape) for name, array in found.items()} == kinds[kind]
    held = sum(array.nbytes for array in found.values())
    assert held == 24 * 4 + (2 * total + 24 * (4 + 200 + 32 * 2) if kind == "sampled" else 24 * 32 * 7 * 4)
    record = json.loads((each / "teacher.json").read_text())
    size = sum(entry["size"] for entry in record["shards"].values())
    assert held < size < held + 5 * 1280
    assert record["bytes_per_token"] == pytest.approx(size / (24 * 32), abs=0.01)
    assert single[f"bytes per token {kind}"] == pytest.approx(size / (24 * 32))


def test_the_trainer_receives_what_is_read(cache, texts, single):
    """Of a run with the cache and of one with a live teacher: the same text, and what the cache holds for it."""
    single["distill live"]
    trained, live = (torch.load(single.path / name / "batch.pt", weights_only=True) for name in ("cached", "live"))
    reader = TeacherCache(cache)
    assert torch.equal(trained["tokens"], live["tokens"])
    for i in range(4):
        ids, surprisal = reader.read(i, texts[i])
        assert ids.shape == (32, 50) and (ids.diff() >= 0).all()
        assert torch.equal(trained["teacher_ids"][i], ids)
        assert torch.equal(trained["teacher_values"][i], surprisal)
    assert len(np.unique(load(cache)["crc32"])) == 24


def test_read_in_any_order(each, texts, monkeypatch):
    """Sample 3, then others' shards, then 3 again; only the first four texts are known here. A shard is hashed once."""
    hashed = []
    digest = artifacts.file_digest
    monkeypatch.setattr(artifacts, "file_digest", lambda path: hashed.append(path.name) or digest(path))
    reader = TeacherCache(each)
    first = reader.read(3, texts[3])
    with pytest.raises(CheckpointError, match=r"sample 22 is of another text than the run's"):
        reader.read(22, texts[3])
    again = reader.read(3, texts[3])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert hashed == ["000000000.safetensors", "000000020.safetensors"]
    with pytest.raises(CheckpointError, match=r"holds 24 samples, none from 25 on"):
        reader.read(25, texts[3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "top_k"}, r"cache of another run; kind: the cache has sampled, this run wants top_k"),
        ({"ids_per_token": 20}, r"ids_per_token: the cache has 50, this run wants 20"),
        ({"temperature": 2.0}, r"temperature: the cache has 1\.0, this run wants 2\.0"),
        ({"seq_length": 64}, r"seq_length: the cache has 32, this run wants 64"),
        ({"vocab_size": 264}, r"vocab_size: the cache has 263, this run wants 264"),
        ({"data": "d"}, r"data: the cache has c, this run wants d"),
        ({"teacher": "d", "tokenizer": "e"}, r"teacher: the cache has a, .* d; tokenizer: the cache has b, .* e"),
        ({"seed": 2}, r"seed: the cache has 1, this run wants 2"),
        ({"dtype": "bfloat16"}, r"dtype: the cache has float32, this run wants bfloat16"),
        ({"samples": 25}, r"samples: the cache has 24, this run wants 25"),
    ],
)
def test_a_cache_of_another_run_is_refused(changes: dict, message: str, cache):
    reader = TeacherCache(cache)
    with pytest.raises(CheckpointError, match=message):
        reader.check(**asdict(replace(reader.contents, **changes)))


def test_a_longer_cache_is_not(each):
    reader = TeacherCache(each)
    reader.check(samples=20, seed=1)
    reader.check(**asdict(reader.contents))


def test_a_damaged_cache_is_refused(copy, texts):
    shard = copy / "shards" / "000000000.safetensors"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"000000000\.safetensors: damaged"):
        TeacherCache(copy).read(0, texts[0])
    shard.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=rf"000000000\.safetensors: missing or not of {len(content)} bytes"):
        TeacherCache(copy)
    record = json.loads((copy / "teacher.json").read_text())
    (copy / "teacher.json").write_text(json.dumps(record | {"format": 1}))
    with pytest.raises(CheckpointError, match="teacher cache of format 1, allowed: 2; run `bielik-nemo teacher` again"):
        TeacherCache(copy)
    (copy / "teacher.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(CheckpointError, match="not a finished teacher cache"):
        TeacherCache(copy)
    (copy / "teacher.json").unlink()
    with pytest.raises(CheckpointError, match=r"not a finished teacher cache .*teacher\.json: No such file"):
        TeacherCache(copy)


def test_sizes_by_hand():
    """100 tokens of 20 draws that all differ: 100 * 20 * 2 ids, 100 * 20 / 8 bits, 100 * 2 + 4 + 4 beside them.

    4458 bytes a sample: 15,053 of them fit in 64 MiB = 67,108,864 bytes. Ids above 65,535 take three bytes, 6458 a
    sample. The best 12: 100 * 12 * 4 + 4 = 4804 bytes.
    """
    contents = Contents("sampled", 20, 1.0, 20_000, 100, 2**16, **ORIGIN)
    assert (contents.most_bytes_per_sample, contents.samples_per_shard) == (4458, 15_053)
    assert contents.shards() == [range(15_053), range(15_053, 20_000)]
    assert replace(contents, vocab_size=2**16 + 1).most_bytes_per_sample == 6458
    assert replace(contents, kind="top_k", ids_per_token=12).most_bytes_per_sample == 4804
    long = Contents("sampled", 50, 1.0, 2, 2**20, 2**16, **ORIGIN)
    assert long.shards() == [range(1), range(1, 2)]
