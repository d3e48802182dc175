"""The pass of a teacher: what it leaves is of its softmax, the same under every layout, and survives interruptions.

The caches are those of `test_teacher_cache.py`, filled in micro-batches of 2, 3, 4 and 5 samples.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from safetensors.numpy import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from bielik_nemo.engine import distributed, teacher_pass
from bielik_nemo.engine.teacher_cache import Contents, TeacherCache
from bielik_nemo.errors import GateError


@pytest.fixture(scope="module")
def texts(single) -> Tensor:
    """The first four samples as the trainer received them."""
    single["distill cached"]
    return torch.load(single.path / "cached" / "batch.pt", weights_only=True)["tokens"]


@pytest.fixture(scope="module")
def logits(texts, inputs) -> Tensor:
    """What plain transformers makes of them, in float64 `[4, 32, 263]`."""
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(inputs / "llama", dtype=torch.float64)(texts).logits


def read(directory: Path, texts: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Ids and values of the first samples."""
    reader = TeacherCache(directory)
    return tuple(np.stack(each) for each in zip(*(reader.read(i, text) for i, text in enumerate(texts)), strict=True))


def test_ids_are_drawn_from_the_teachers_softmax(single, texts, logits):
    """By inversion in float64 from the same random numbers; a number on the edge of two ids may fall either way.

    How often each id of probability p is drawn is 50 p, rounded down or up.
    """
    found, surprisal = read(single.path / "teacher sampled", texts)
    p = logits.softmax(-1).numpy()
    for i in range(4):
        numbers = (np.arange(50) + np.random.default_rng([1, i]).random((32, 1))) / 50
        ids = np.stack([np.searchsorted(np.cumsum(p[i, t]), numbers[t], side="right") for t in range(32)])
        assert (found[i] != ids).mean() < 0.002
        counts = (found[i][..., None] == np.arange(263)).sum(1)
        assert (np.abs(counts - 50 * p[i]) < 1 + 1e-4).all()
        kept = -np.log(np.take_along_axis(p[i], found[i].astype(np.int64), -1)).mean(-1)
        assert surprisal[i] == pytest.approx(kept, rel=2**-11 + 1e-5)


def test_the_most_likely_ids(single, texts, logits):
    """Of 263 the best 7 at temperature 2; half precision has a relative error of 2^-11."""
    found, log_probs = read(single.path / "teacher top_k", texts)
    want = (logits / 2).log_softmax(-1).topk(7)
    assert np.array_equal(found, want.indices.numpy())
    assert log_probs == pytest.approx(want.values.numpy(), rel=2**-11 + 1e-5)


def test_separate_documents_are_read_by_themselves(single, texts, inputs):
    """Each piece of a sample alone: 7 log-probabilities of every token, which is not what the whole sample gives."""
    _, log_probs = read(single.path / "teacher separate", texts)
    reference = AutoModelForCausalLM.from_pretrained(inputs / "llama", dtype=torch.float64)
    bounds = 0
    for found, tokens in zip(log_probs, texts, strict=True):
        pieces = [piece for piece in tokens.tensor_split((tokens == ranks.EOD).nonzero().flatten() + 1) if len(piece)]
        with torch.no_grad():
            alone = torch.cat([reference(piece[None]).logits[0] for piece in pieces])
            whole = reference(tokens[None]).logits[0]
        assert found == pytest.approx(alone.log_softmax(-1).topk(7).values.numpy(), rel=2**-11 + 1e-5)
        if len(pieces) > 1:
            bounds += 1
            assert found != pytest.approx(whole.log_softmax(-1).topk(7).values.numpy(), rel=1e-2)
    assert bounds


@pytest.mark.parametrize("layout", ["tp2", "pp2", "dp2"], indirect=True)
def test_the_same_under_every_layout(layout, single):
    """But for rounding: a draw on the edge of two ids, the last bit of half precision."""
    single["teach"], layout["teach"]
    for kind in ("sampled", "top_k", "separate"):
        one, two = (where.path / f"teacher {kind}" for where in (single, layout))
        assert TeacherCache(one).contents == TeacherCache(two).contents
        assert sorted(path.name for path in (one / "shards").iterdir()) == sorted(
            path.name for path in (two / "shards").iterdir()
        )
        different = []
        for path in (one / "shards").iterdir():
            a, b = load_file(path), load_file(two / "shards" / path.name)
            assert np.array_equal(a["crc32"], b["crc32"])
            values = "surprisal" if kind == "sampled" else "log_probs"
            different += [(np.abs(a[values] - b[values]) > 2**-9 * np.abs(a[values])).ravel()]
            if a["ids"].shape == b["ids"].shape:
                different += [(a["ids"] != b["ids"]).ravel()]
        assert np.concatenate(different).mean() < 2e-3


def test_an_interrupted_pass_goes_on_after_what_is_whole(single, tmp_path):
    """One shard is missing, one is cut short, one half-written beside; those of other contents count for nothing."""
    single["teach"]
    copy = Path(shutil.copytree(single.path / "teacher sampled", tmp_path / "teacher"))
    contents = TeacherCache(copy).contents
    before = {path: path.stat().st_mtime_ns for path in (copy / "shards").iterdir()}
    (copy / "shards" / "000000005.safetensors").unlink()
    cut = copy / "shards" / "000000020.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    (copy / "shards" / ".000000005.safetensors.partial").write_bytes(b"")
    with distributed.model_parallel():
        assert teacher_pass.to_do(copy, contents) == [range(5, 10), range(20, 24)]
        kept = {path: path.stat().st_mtime_ns for path in (copy / "shards").iterdir()}
        assert kept == {path: time for path, time in before.items() if path.name[6:9] in ("000", "010", "015")}
        assert teacher_pass.to_do(copy, replace(contents, seed=2)) == contents.shards()
        assert not list((copy / "shards").iterdir())


def test_random_numbers_are_of_the_seed_and_the_sample_alone():
    one = teacher_pass.uniforms(1, 7, 4, 3)
    assert torch.equal(one, teacher_pass.uniforms(1, 7, 4, 3))
    for other in ((1, 8), (2, 7)):
        assert not torch.equal(one, teacher_pass.uniforms(*other, 4, 3))


def test_random_numbers_are_evenly_spaced_and_below_one(monkeypatch):
    """(n + u) / 5: from u = 1 - 2^-53, the largest there is, the last would be rounded up to 1."""
    numbers = teacher_pass.uniforms(1, 7, 1000, 5)
    torch.testing.assert_close(numbers.diff(), torch.full((1000, 4), 0.2, dtype=torch.float64))
    assert len(numbers[:, 0].unique()) == 1000 and 0 <= numbers.min() and numbers[:, 0].max() < 0.2

    class Largest:
        def random(self, shape):
            return np.full(shape, 1 - 2**-53)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Largest())
    assert teacher_pass.uniforms(1, 7, 1, 5).max() < 1


def test_evenly_spaced_draws_leave_forward_kl_unbiased():
    """4,000 samples of one token, 5 draws of 8 words: counts / 5 are p in the mean, within five standard errors.

    Their variance is f (1 - f) / 25 with f = 5 p - floor(5 p); of independent draws it would be p (1 - p) / 5.
    """
    from bielik_nemo.losses import draw

    logits = torch.randn(1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(-1)[0]
    numbers = torch.cat([teacher_pass.uniforms(3, i, 1, 5) for i in range(4000)])
    ids, _ = draw(logits.expand(4000, -1), numbers)
    counts = (ids.unsqueeze(-1) == torch.arange(8)).sum(1).double()
    f = 5 * p - (5 * p).floor()
    variance = f * (1 - f) / 25
    assert ((counts.mean(0) / 5 - p).abs() < 5 * (variance / 4000).sqrt()).all()
    assert (counts / 5).var(0) == pytest.approx(variance, rel=0.2, abs=1e-4)
    assert variance.sum() < 0.7 * (p * (1 - p) / 5).sum()


@pytest.mark.parametrize("keep", [teacher_pass._sampled, teacher_pass._top_k])
def test_logits_that_are_not_finite_stop_the_pass(keep):
    contents = Contents("sampled", 2, 1.0, 10, 3, 5, 0, "float32", "", "", "")
    logits = torch.zeros(2, 3, 5)
    with distributed.model_parallel():
        assert keep(logits, range(6, 8), contents)["ids"].dtype == np.uint16
        for bad in (torch.nan, torch.inf):
            logits[1, 2, 4] = bad
            with pytest.raises(GateError, match="logits for samples 6 to 7 are not finite"):
                keep(logits, range(6, 8), contents)
