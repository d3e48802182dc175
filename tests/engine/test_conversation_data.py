"""Samples of conversations, by hand; test_sft.py trains on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from bielik_nemo.engine import attention, labelled
from bielik_nemo.engine.conversation_data import ConversationDataset, Corpus, Weighted, lay, plan
from bielik_nemo.errors import DataError


def conversation(ids: list[int], weights: list[float]) -> Weighted:
    return Weighted(np.array(ids), np.array(weights, dtype=np.float32))


@pytest.fixture
def written(tmp_path: Path):
    """`written({"000": [(ids, trained, hundredths), ...]})`: a directory as the stage chat leaves it."""

    def write(sets: dict[str, list[tuple[list[int], list[int], int]]]) -> str:
        for name, rows in sets.items():
            with labelled.writer(tmp_path / name, 263) as add:
                for ids, trained, _ in rows:
                    add(ids, [bool(mark) for mark in trained])
        weights = {name: np.array([row[2] for row in rows], dtype=np.uint8) for name, rows in sets.items()}
        save_file(weights, tmp_path / "weights.safetensors")
        return str(tmp_path)

    return write


def test_two_conversations_in_a_sequence():
    """5 6 7 with 7 trained, 8 9 with 9 at half: 3 - 1 and 2 - 1 predictions, then 2 positions that are left.

    5 -> 6 and 6 -> 7 are predictions, 7 -> 8 is none: 8 stands where the next conversation begins.
    """
    sample = lay([conversation([5, 6, 7], [0, 0, 1]), conversation([8, 9], [0, 0.5])], 5)
    assert sample["tokens"].tolist() == [5, 6, 8, 0, 0]
    assert sample["labels"].tolist() == [6, 7, 9, 0, 0]
    assert sample["loss_mask"].tolist() == [0, 1, 0.5, 0, 0]
    assert sample["position_ids"].tolist() == [0, 1, 0, 0, 1]
    if not attention.HAVE_TE:
        assert torch.equal(sample["attention_mask"], attention.block_mask(torch.tensor([0, 2, 3, 5])))


def test_a_full_sequence_has_nothing_left():
    sample = lay([conversation([1, 2, 3], [0, 1, 1]), conversation([4, 5], [0, 1])], 3)
    assert sample["position_ids"].tolist() == [0, 1, 0]
    assert sample["loss_mask"].tolist() == [1, 1, 1]


def test_an_empty_sequence_trains_nothing():
    sample = lay([], 4)
    assert not sample["loss_mask"].any() and sample["position_ids"].tolist() == [0, 1, 2, 3]


def test_what_is_behind_a_sequence_is_cut(written):
    """Of 6 tokens a sequence of 3 predicts the first 4 - 1; of the second conversation nothing trained is left."""
    corpus = Corpus(
        written({"000": [(list(range(6)), [0, 0, 1, 1, 1, 1], 100), ([7] * 6, [0, 0, 0, 0, 1, 1], 100)]}), 3
    )
    assert corpus[0].ids.tolist() == [0, 1, 2, 3] and corpus[0].weights.tolist() == [0, 0, 1, 1]
    assert corpus.lengths.tolist() == [3, 3] and corpus.cut == 2 and corpus.usable.tolist() == [0]


def test_weights_are_hundredths_of_the_conversation(written):
    corpus = Corpus(written({"000": [([1, 2, 3], [0, 1, 1], 70)], "001": [([4, 5], [0, 1], 50)]}), 8)
    assert corpus[0].weights.tolist() == [0, np.float32(0.7), np.float32(0.7)]
    assert corpus[1].weights.tolist() == [0, 0.5]
    assert corpus.names == ["000", "001"] and corpus.source.tolist() == [0, 1]


def test_every_epoch_has_every_conversation_once_in_another_order(written):
    rows = [([token, token, token], [0, 1, 1], 100) for token in range(1, 41)]
    directory = written({"000": rows})
    dataset = ConversationDataset(directory, 8, True, seed=3, samples=20)
    assert len(dataset) == 20 + 1 and len(dataset.plan.packs) == 10  # four conversations of two predictions in each
    epochs = [[sorted(set(dataset[i]["labels"].tolist())) for i in range(first, first + 10)] for first in (0, 10)]
    for epoch in epochs:
        assert sorted(token for labels in epoch for token in labels) == list(range(1, 41))
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1])
    again = ConversationDataset(directory, 8, True, seed=3, samples=20)
    assert all(torch.equal(again[13][name], dataset[13][name]) for name in ("tokens", "labels"))


def test_unpacked_each_has_a_sequence_of_its_own(written):
    rows = [([token] * 3, [0, 1, 1], 100) for token in (1, 2, 3)]
    found = plan(written({"000": rows}), 8, False, 0)
    assert len(found.packs) == 3 and found.filled == pytest.approx(2 / 8)


def test_nothing_that_is_trained_within_a_sequence(written):
    directory = written({"000": [([1] * 9, [0] * 8 + [1], 100)]})
    with pytest.raises(DataError, match=r"no conversation has a trained token within a sequence of 4"):
        plan(directory, 4, True, 0)


def test_marks_and_ids_come_back(tmp_path: Path):
    with labelled.writer(tmp_path / "x", 263) as add:
        add([0, 262, 5], [False, True, False])
    found = labelled.Conversations(tmp_path / "x")
    assert json.dumps([found[0].ids.tolist(), found[0].trained.tolist()]) == "[[0, 262, 5], [false, true, false]]"
    assert found.lengths.tolist() == [3] and len(found) == 1
