"""The teacher's samples: those of the texts that the trainer draws, the same under every layout, refused when stale.

Made by `ranks.py`: 24 samples of 32 tokens, 50 ids a token, five samples a shard, so that the last of five has four;
micro-batches of 2, 3, 4 and 5 samples.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from bielik_nemo.engine import distributed, teacher_cache
from bielik_nemo.engine.teacher_cache import Contents, TeacherCache
from bielik_nemo.errors import CheckpointError, GateError

FIRSTS = [0, 5, 10, 15, 20]


def load(directory: Path) -> dict[str, np.ndarray]:
    """All samples of a cache."""
    shards = [load_file(directory / "shards" / f"{first:09d}.safetensors") for first in FIRSTS]
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


@pytest.fixture(scope="module")
def cache(single) -> Path:
    single["teach"]
    return single.path / "teacher"


@pytest.fixture
def copy(cache, tmp_path) -> Path:
    shutil.copytree(cache, tmp_path / "teacher")
    return tmp_path / "teacher"


def batch(single, name: str = "cached") -> dict[str, torch.Tensor]:
    """The first four samples as the trainer received them."""
    single[f"distill {name}"]
    return torch.load(single.path / name / "batch.pt", weights_only=True)


def test_files_and_types(cache, single):
    """24 * 32 tokens of 50 * 2 + 4 bytes; 4 bytes more for each sample, and five headers of a kilobyte at most."""
    assert sorted(path.name for path in (cache / "shards").iterdir()) == [
        f"{first:09d}.safetensors" for first in FIRSTS
    ]
    found = load(cache)
    assert {name: (str(array.dtype), array.shape) for name, array in found.items()} == {
        "ids": ("uint16", (24, 32, 50)),
        "surprisal": ("float32", (24, 32)),
        "crc32": ("uint32", (24,)),
    }
    record = json.loads((cache / "teacher.json").read_text())
    size = sum(entry["size"] for entry in record["shards"].values())
    assert 24 * (32 * 104 + 4) < size < 24 * (32 * 104 + 4) + 5 * 1024
    assert record["bytes_per_token"] == pytest.approx(size / (24 * 32), abs=0.01)
    assert single["bytes per token"] == pytest.approx(size / (24 * 32))


def test_samples_are_those_that_the_trainer_draws(cache, single):
    """Of a run with the cache and of one with a live teacher: the text, and with it what the cache holds for it."""
    found, reader = load(cache), TeacherCache(cache)
    trained, live = batch(single), batch(single, "live")
    assert torch.equal(trained["tokens"], live["tokens"])
    for i in range(4):
        ids, surprisal = reader.read(i, live["tokens"][i])
        assert torch.equal(trained["teacher_ids"][i], ids)
        assert torch.equal(trained["teacher_surprisal"][i], surprisal)
        assert np.array_equal(ids.numpy(), found["ids"][i])
    assert len(np.unique(found["crc32"])) == 24


def test_samples_are_drawn_from_the_teachers_softmax(cache, single, inputs):
    """By inversion in float64 from the same random numbers; a number on the edge of two ids may fall either way."""
    found, tokens = load(cache), batch(single)["tokens"]
    teacher = AutoModelForCausalLM.from_pretrained(inputs / "llama", dtype=torch.float64)
    with torch.no_grad():
        p = teacher(tokens).logits.softmax(-1).numpy()
    for i in range(4):
        numbers = np.random.default_rng([1, i]).random((32, 50))
        ids = np.stack([np.searchsorted(np.cumsum(p[i, t]), numbers[t], side="right") for t in range(32)])
        assert (found["ids"][i] != ids).mean() < 0.002
        surprisal = -np.log(np.take_along_axis(p[i], found["ids"][i].astype(np.int64), -1)).mean(-1)
        assert found["surprisal"][i] == pytest.approx(surprisal, rel=1e-5)


@pytest.mark.parametrize("layout", ["tp2", "pp2", "dp2"], indirect=True)
def test_the_same_under_every_layout(layout, cache):
    layout["teach"]
    one, two = load(cache), load(layout.path / "teacher")
    assert np.array_equal(two["crc32"], one["crc32"])
    assert (two["ids"] != one["ids"]).mean() < 1e-3
    same = (two["ids"] == one["ids"]).all(-1)
    assert two["surprisal"][same] == pytest.approx(one["surprisal"][same], rel=1e-5)
    assert TeacherCache(layout.path / "teacher").contents == TeacherCache(cache).contents


def test_read_in_any_order(cache, single):
    """Sample 3, then others' shards, then 3 again; only the first four texts are known here."""
    reader, tokens = TeacherCache(cache), batch(single)["tokens"]
    first = reader.read(3, tokens[3])
    with pytest.raises(CheckpointError, match=r"sample 22 is of another text than the run's"):
        reader.read(22, tokens[3])
    again = reader.read(3, tokens[3])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with pytest.raises(CheckpointError, match=r"holds 24 samples, none from 25 on"):
        reader.read(25, tokens[3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_length": 64}, r"cache of another run; seq_length: the cache has 32, this run wants 64"),
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


def test_a_longer_cache_is_not(cache):
    reader = TeacherCache(cache)
    reader.check(samples=20, seed=1)
    reader.check(**asdict(reader.contents))


def test_a_damaged_cache_is_refused(copy, single):
    tokens, shard = batch(single)["tokens"], copy / "shards" / "000000000.safetensors"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"000000000\.safetensors: damaged"):
        TeacherCache(copy).read(0, tokens[0])
    shard.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=rf"000000000\.safetensors: missing or not of {len(content)} bytes"):
        TeacherCache(copy)
    record = json.loads((copy / "teacher.json").read_text())
    (copy / "teacher.json").write_text(json.dumps(record | {"format": 2}))
    with pytest.raises(CheckpointError, match="teacher cache of format 2, allowed: 1"):
        TeacherCache(copy)
    (copy / "teacher.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(CheckpointError, match="not a finished teacher cache"):
        TeacherCache(copy)
    (copy / "teacher.json").unlink()
    with pytest.raises(CheckpointError, match=r"not a finished teacher cache .*teacher\.json: No such file"):
        TeacherCache(copy)


def test_an_interrupted_pass_goes_on_after_what_is_whole(copy):
    """One shard is missing, one is cut short, one half-written beside; those of other contents count for nothing."""
    contents = TeacherCache(copy).contents
    before = {path: path.stat().st_mtime_ns for path in (copy / "shards").iterdir()}
    (copy / "shards" / "000000005.safetensors").unlink()
    cut = copy / "shards" / "000000020.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    (copy / "shards" / ".000000005.safetensors.partial").write_bytes(b"")
    with distributed.model_parallel():
        assert teacher_cache.to_do(copy, contents) == [range(5, 10), range(20, 24)]
        kept = {path: path.stat().st_mtime_ns for path in (copy / "shards").iterdir()}
        assert kept == {path: time for path, time in before.items() if path.name[6:9] in ("000", "010", "015")}
        assert teacher_cache.to_do(copy, replace(contents, seed=2)) == contents.shards()
        assert not list((copy / "shards").iterdir())


def test_sizes_by_hand():
    """100 tokens of 50 * 2 + 4 bytes are 10,400 bytes a sample: 6452 of them fit in 64 MiB = 67,108,864 bytes.

    Ids above 65,535 take four bytes: 100 * 204 bytes, 3289 samples.
    """
    contents = Contents(10_000, 100, 50, 2**16, 0, "float32", "", "", "")
    assert (contents.bytes_per_token, contents.samples_per_shard) == (104, 6452)
    assert contents.shards() == [range(6452), range(6452, 10_000)]
    wide = Contents(10_000, 100, 50, 2**16 + 1, 0, "float32", "", "", "")
    assert (wide.bytes_per_token, wide.samples_per_shard, wide.id_dtype) == (204, 3289, np.int32)
    long = Contents(2, 2**20, 50, 2**16, 0, "float32", "", "", "")
    assert long.shards() == [range(1), range(1, 2)]


def test_random_numbers_are_of_the_seed_and_the_sample_alone():
    one = teacher_cache.uniforms(1, 7, (4, 3))
    assert torch.equal(one, teacher_cache.uniforms(1, 7, (4, 3)))
    for other in ((1, 8), (2, 7)):
        assert not torch.equal(one, teacher_cache.uniforms(*other, (4, 3)))


def test_logits_that_are_not_finite_stop_the_pass():
    contents = Contents(10, 3, 2, 5, 0, "float32", "", "", "")
    logits = torch.zeros(2, 3, 5)
    logits[1, 2, 4] = torch.nan
    with distributed.model_parallel(), pytest.raises(GateError, match="logits for samples 6 to 7 are not finite"):
        teacher_cache._sampled(logits, range(6, 8), contents)
