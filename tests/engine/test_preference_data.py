"""Samples of preference pairs, by hand; test_preference.py trains on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from bielik_nemo.engine import labelled
from bielik_nemo.engine.conversation_data import SampleData, Weighted
from bielik_nemo.engine.preference_data import (
    Pairs,
    PreferenceData,
    PreferenceDataset,
    Steps,
    cut,
    lay_pairs,
    plan,
    references,
)
from bielik_nemo.errors import DataError


def conversation(ids: list[int], weights: list[float]) -> Weighted:
    return Weighted(np.array(ids), np.array(weights, dtype=np.float32))


@pytest.fixture
def written(tmp_path: Path):
    """`written({"00000": [(prompt, chosen, rejected), ...]})`: numbers of tokens; ids count up from 1."""

    def write(sets: dict[str, list[tuple[int, int, int]]]) -> str:
        (tmp_path / "train").mkdir()
        for name, rows in sets.items():
            with labelled.writer(tmp_path / "train" / name, 263) as add:
                for prompt, *answers in rows:
                    for answer in answers:
                        add(list(range(1, prompt + answer + 1)), [place >= prompt for place in range(prompt + answer)])
        return str(tmp_path / "train")

    return write


def test_a_pair_in_a_sequence_of_eight():
    """5 6 7 8 with 7 8 chosen, 5 6 9 with 9 rejected: 3 and 2 predictions, then 3 positions that are left.

    The token at position j is predicted from position j - 1 of its conversation: 7 from 6, 8 from 7, 9 from 6.
    """
    pair = conversation([5, 6, 7, 8], [0, 0, 1, 1]), conversation([5, 6, 9], [0, 0, 1])
    sample = lay_pairs([pair], 8, 2, np.array([[-3.0, -4.0]], dtype=np.float32))
    assert sample["tokens"].tolist() == [5, 6, 7, 5, 6, 0, 0, 0]
    assert sample["labels"].tolist() == [6, 7, 8, 6, 9, 0, 0, 0]
    assert sample["answers"].tolist() == [-1, 0, 0, -1, 1, -1, -1, -1]
    assert sample["position_ids"].tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert sample["reference"][0].tolist() == [-3, -4] and sample["reference"][1].isnan().all()
    may = ~sample["attention_mask"][0]
    assert may[2].tolist() == [True] * 3 + [False] * 5 and may[4].tolist() == [False] * 3 + [True] * 2 + [False] * 3


def test_the_second_pair_of_a_sequence_goes_on_counting_and_an_empty_sequence_has_none():
    pair = conversation([5, 7], [0, 1]), conversation([5, 9], [0, 1])
    assert lay_pairs([pair, pair], 5, 2)["answers"].tolist() == [0, 1, 2, 3, -1]
    empty = lay_pairs([], 5, 2, np.empty((0, 2), dtype=np.float32))
    assert empty["answers"].tolist() == [-1] * 5 and empty["loss_mask"].tolist() == [0] * 5
    assert empty["reference"].isnan().all() and empty["reference"].shape == (2, 2)


@pytest.mark.parametrize(
    ("lengths", "prompt", "kept"),
    [
        ((9, 9), 4, (0, 9, 9)),  # 8 + 8 predictions: just fits
        ((12, 9), 8, (2, 10, 7)),  # 3 over: two tokens of both prompts make room for four; 6 of 8 stay of it
        ((12, 9), 5, (1, 10, 8)),  # the prompt keeps 16 / 4 = 4: one goes; 10 + 7 are still over, by one of the longer
        ((30, 6), 4, (0, 12, 6)),  # nothing of the prompt: 5 of the shorter leave 11 predictions
        ((6, 30), 4, (0, 6, 12)),
        ((30, 40), 20, (16, 9, 9)),  # 16 of 20 go; 13 and 23 predictions have 8 each
    ],
)
def test_cut_to_sixteen_predictions(lengths: tuple[int, int], prompt: int, kept: tuple[int, int, int]):
    """Tokens of a conversation are one more than its predictions; by hand beside each case."""
    assert cut(lengths, prompt, 16) == kept
    assert sum(kept[1:]) - 2 <= 16


def test_pairs_of_two_sources(written):
    """4 + 4 + 5 and 2 + 9 + 1 tokens, of a sequence of 16: 7 + 8 and 10 + 2 predictions; and 6 + 30 + 8, which is cut.

    35 + 13 - 16 = 32 are over; of the prompt 6 - 16 / 4 = 2 go; 33 and 11 predictions are left, of which 8 each stay.
    """
    pairs = Pairs(written({"00000": [(4, 4, 5), (2, 9, 1)], "00001": [(6, 30, 8)]}), 16)
    assert (pairs.names, len(pairs), pairs.cut, pairs.usable.tolist()) == (["00000", "00001"], 3, 1, [0, 1, 2])
    assert pairs.lengths.tolist() == [15, 12, 16] and pairs.source.tolist() == [0, 0, 1]
    chosen, rejected = pairs[1]
    assert chosen.ids.tolist() == list(range(1, 12)) and chosen.weights.tolist() == [0, 0, *[1] * 9]
    assert rejected.ids.tolist() == [1, 2, 3] and rejected.weights.tolist() == [0, 0, 1]
    for answer in pairs[2]:
        assert answer.ids.tolist() == list(range(3, 12)) and answer.weights.tolist() == [0] * 4 + [1] * 5
    parts = pairs.split(np.array([1, 2, 3]))
    assert {name: each.tolist() for name, each in parts.items()} == {"00000": [1, 2], "00001": [3]}


def test_every_step_has_its_pairs_and_every_epoch_all_of_them():
    """7 pairs, 3 a step: steps 0 to 6 are three epochs, in three orders; step 2 is of two of them."""

    class Some:
        lengths, usable, seq_length = np.array([3, 4, 5, 6, 7, 8, 9, 1]), np.array([0, 1, 2, 3, 4, 5, 7]), 10

    steps = Steps(Some(), 3, seed=1)
    drawn = [np.concatenate(steps[step]) for step in range(7)]
    assert [len(each) for each in drawn] == [3] * 7
    in_order = [steps.order(epoch).tolist() for epoch in range(3)]
    assert all(sorted(each) == Some.usable.tolist() for each in in_order) and in_order[0] != in_order[1] != in_order[2]
    row = [pair for each in in_order for pair in each]
    assert [sorted(each.tolist()) for each in drawn] == [sorted(row[3 * step : 3 * step + 3]) for step in range(7)]
    assert all(Some.lengths[each].sum() <= 10 for step in range(7) for each in steps[step])


def test_plan_and_samples(written, tmp_path):
    """Pairs of 3 to 9 predictions in sequences of 16, two a step, two epochs: 7 steps of 7 pairs."""
    directory = written({"00000": [(2, 1 + i % 3, 1 + i // 2) for i in range(7)]})
    values = np.arange(14, dtype=np.float32).reshape(7, 2)
    save_file({"train/00000": values}, tmp_path / "log_probs.safetensors")
    settings = {
        "directory": directory,
        "seq_length": 16,
        "batch": 2,
        "seed": 0,
        "unit": 4,
        "epochs": 2.0,
        "max_steps": None,
    }
    found = plan(**settings)
    pairs = found.batches.pairs
    assert (found.steps, found.sequences) == (7, 4)
    assert found.filled == pytest.approx(2 * pairs.lengths.sum() / (7 * 4 * 16))
    assert plan(**settings | {"max_steps": 3}).steps == 3
    dataset = PreferenceDataset(str(tmp_path / "log_probs.safetensors"), **settings)
    assert len(dataset) == 28 + 1
    given = []
    for step in range(7):
        samples = [dataset[4 * step + i] for i in range(4)]
        there = torch.cat([each["reference"] for each in samples])
        there = there[~there.isnan().any(1)]
        assert len(there) == 2
        given += there.tolist()
    assert sorted(given) == sorted(values.tolist() * 2)


def test_a_run_goes_on_at_its_step_where_a_step_has_more_sequences(monkeypatch):
    """Three steps of 4 sequences; gone on with in steps of 6 they are 18 samples."""
    loaded: list[dict] = []
    monkeypatch.setattr(SampleData, "load_state_dict", lambda self, state: loaded.append(state))
    data = PreferenceData.__new__(PreferenceData)
    data.global_batch_size = 6
    data.load_state_dict({"consumed_samples": 12, "sequences": 4})
    assert loaded == [{"consumed_samples": 18}]


def test_what_is_not_pairs(written, tmp_path):
    with pytest.raises(DataError, match=r"no pair has both its answers within a sequence of 1\b"):
        Pairs(written({"00000": [(4, 4, 4)]}), 1)
    with labelled.writer(tmp_path / "train" / "00000", 263) as add:
        add([1, 2], [False, True])
    with pytest.raises(DataError, match="00000: 1 conversations, allowed: two for each pair"):
        Pairs(str(tmp_path / "train"), 16)


def test_references_of_other_pairs(written, tmp_path):
    directory, file = written({"00000": [(1, 1, 1)] * 3}), tmp_path / "log_probs.safetensors"
    pairs = Pairs(directory, 16)
    with pytest.raises(DataError, match="cannot be read"):
        references(file, directory, pairs)
    save_file({"train/00000": np.zeros((2, 2), dtype=np.float32)}, file)
    with pytest.raises(DataError, match=r"holds 2 pairs of .*, allowed: its 3"):
        references(file, directory, pairs)
