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


def test_held_out_tokens_are_the_same_each_time(llama, inputs):
    """10 blocks in batches of 4: three passes; the loss is that of the blocks."""
    from bielik_nemo.engine import forward

    megatron, _ = llama
    held = datasets.HeldOut(str(inputs / "held_out"), 32, 320, 4)
    assert held.batches() == 3
    assert torch.equal(held.blocks(), datasets.blocks(inputs / "held_out", 32, 320))
    passes: list[int] = []
    loss = held.loss(megatron, lambda: passes.append(1))
    assert len(passes) == held.batches()
    assert loss == forward.held_out_loss(megatron, held.blocks(), 4) == held.loss(megatron)
