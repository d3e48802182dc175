"""Megatron datasets hold what was written, and blocks cut it without losing a prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bielik_nemo.engine import datasets
from bielik_nemo.errors import DataError

DOCUMENTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(263, np.uint16), (65_499, np.uint16), (128_256, np.int32)])
def test_documents_come_back(tmp_path, vocab_size, dtype):
    """Two bytes a token where the vocabulary allows it, four where it does not."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    last = [*DOCUMENTS, [vocab_size - 1]]
    assert datasets.write(tmp_path / "text", last, vocab_size) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.bin", "text.idx"]
    assert (tmp_path / "text.bin").stat().st_size == 10 * np.dtype(dtype).itemsize
    held = IndexedDataset(str(tmp_path / "text"))
    assert [held[i].tolist() for i in range(len(held))] == last
    assert held.document_indices.tolist() == [0, 1, 2, 3, 4]


def test_blocks_overlap_by_one_token_across_documents(tmp_path):
    """9 tokens, blocks of 3 predictions: tokens 1-4, 4-7; the third would need tokens 7-10."""
    datasets.write(tmp_path / "text", DOCUMENTS, 263)
    found = datasets.blocks(tmp_path / "text", seq_length=3, tokens=100)
    assert found.tolist() == [[1, 2, 3, 4], [4, 5, 6, 7]]
    assert found.dtype == torch.int64


@pytest.mark.parametrize(
    ("seq_length", "tokens", "blocks"),
    [
        (3, 6, [[1, 2, 3, 4], [4, 5, 6, 7]]),
        (3, 5, [[1, 2, 3, 4]]),
        (3, 3, [[1, 2, 3, 4]]),
        (3, 1, [[1, 2, 3, 4]]),  # at least one
        (8, 8, [[1, 2, 3, 4, 5, 6, 7, 8, 9]]),  # the dataset exactly
        (1, 3, [[1, 2], [2, 3], [3, 4]]),
    ],
)
def test_as_many_predictions_as_wanted(tmp_path, seq_length, tokens, blocks):
    datasets.write(tmp_path / "text", DOCUMENTS, 263)
    assert datasets.blocks(tmp_path / "text", seq_length, tokens).tolist() == blocks


@pytest.mark.parametrize("documents", [DOCUMENTS, [[1]]])
def test_a_dataset_that_does_not_fill_a_block(tmp_path, documents):
    """9 tokens are 8 predictions: blocks of 9 do not fit."""
    count = datasets.write(tmp_path / "text", documents, 263)
    with pytest.raises(DataError, match=rf"text: {count} tokens do not fill one block of data.seq_length=9 \+ 1"):
        datasets.blocks(tmp_path / "text", seq_length=9, tokens=9)


def test_writing_again_replaces(tmp_path):
    datasets.write(tmp_path / "text", DOCUMENTS, 263)
    datasets.write(tmp_path / "text", [[7, 7, 7]], 263)
    assert datasets.blocks(tmp_path / "text", 2, 2).tolist() == [[7, 7, 7]]


def test_documents_that_fail_on_the_way_leave_no_dataset(tmp_path):
    """A source that breaks (a file that is not UTF-8) leaves what was there under the final names."""

    def broken():
        yield [1, 2]
        raise DataError("line 3: not UTF-8")

    datasets.write(tmp_path / "text", DOCUMENTS, 263)
    before = (tmp_path / "text.bin").read_bytes(), (tmp_path / "text.idx").read_bytes()
    with pytest.raises(DataError, match="not UTF-8"):
        datasets.write(tmp_path / "text", broken(), 263)
    assert ((tmp_path / "text.bin").read_bytes(), (tmp_path / "text.idx").read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.bin", "text.idx"]


def test_one_language_is_measured_on_its_first_tokens_each_time(llama, inputs):
    """10 blocks in batches of 4: three passes; the loss is that of the blocks, to the last bit."""
    from bielik_nemo.engine import forward

    megatron, _ = llama
    held = datasets.HeldOut(str(inputs / "held_out"), 32, 320, 4)
    assert held.batches() == 3
    blocks = datasets.blocks(inputs / "held_out" / "text", 32, 320)
    assert list(held.blocks()) == ["text"] and torch.equal(held.blocks()["text"], blocks)
    passes: list[int] = []
    loss = held.loss(megatron, lambda: passes.append(1))
    assert len(passes) == held.batches()
    assert loss == forward.held_out_loss(megatron, blocks, 4) == held.loss(megatron)
    assert held.losses(megatron) == {"text": loss}


def test_languages_share_the_tokens_equally(tmp_path):
    """12 predictions for three languages: 4 each, in blocks of 2. `en` has only 3 tokens: one block."""
    for language, count in (("pl", 20), ("en", 3), ("cs", 5)):
        datasets.write(tmp_path / language, [[1, 2], list(range(3, count + 1))], 263)
    parts = datasets.HeldOut(str(tmp_path), 2, 12, 1).blocks()
    assert {language: part.tolist() for language, part in parts.items()} == {
        "cs": [[1, 2, 3], [3, 4, 5]],
        "en": [[1, 2, 3]],
        "pl": [[1, 2, 3], [3, 4, 5]],
    }
    assert list(parts) == ["cs", "en", "pl"]
    assert datasets.HeldOut(str(tmp_path), 2, 12, 2).batches() == 3


def test_a_language_that_fills_no_block_is_named(tmp_path):
    datasets.write(tmp_path / "pl", [[1, 2, 3]], 263)
    datasets.write(tmp_path / "en", [[1, 2]], 263)
    with pytest.raises(DataError, match=r"/en: 2 tokens do not fill one block of data.seq_length=2 \+ 1"):
        datasets.HeldOut(str(tmp_path), 2, 12, 1).blocks()


def test_a_directory_without_datasets(tmp_path):
    with pytest.raises(DataError, match="no datasets in this directory"):
        datasets.HeldOut(str(tmp_path), 2, 12, 1).batches()


def test_the_loss_is_the_mean_over_tokens_of_all_languages(tmp_path, monkeypatch):
    """Three blocks of `en` at 2.0 nats and one of `pl` at 4.0: (3 * 2 + 4) / 4 = 2.5; the mean of languages is 3.0."""
    from bielik_nemo.engine import forward

    datasets.write(tmp_path / "en", [list(range(7))], 263)
    datasets.write(tmp_path / "pl", [list(range(3))], 263)
    measured = []

    def held_out_loss(model, blocks, batch_size, on_batch):
        measured.append((model, batch_size, len(blocks)))
        return 2.0 if len(blocks) == 3 else 4.0

    monkeypatch.setattr(forward, "held_out_loss", held_out_loss)
    held = datasets.HeldOut(str(tmp_path), 2, 12, 5)
    assert held.measure("model") == (2.5, {"en": 2.0, "pl": 4.0})
    assert measured == [("model", 5, 3), ("model", 5, 1)]  # one pass over each
    by_language = {"held_out_loss_by_language": {"en": 2.0, "pl": 4.0}}
    assert held.record("model") == {"held_out_loss": 2.5} | by_language
    assert held.loss("model") == 2.5 and held.losses("model") == {"en": 2.0, "pl": 4.0}


def test_documents_outlive_their_dataset(tmp_path):
    """Megatron's arrays are views of a file that is unmapped with its dataset."""
    datasets.write(tmp_path / "text", DOCUMENTS, 263)
    found = list(datasets.documents(tmp_path / "text"))
    assert [ids.tolist() for ids in found] == DOCUMENTS
    assert all(ids.dtype == np.int64 and ids.flags.owndata for ids in found)
