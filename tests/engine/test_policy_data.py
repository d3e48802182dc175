"""Answers of a rollout as training samples."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from bielik_nemo.engine.policy_data import Numbers, PolicyData, Sampled, Update, lay_answers
from bielik_nemo.engine.policy_files import load, save


def answer(prompt: int, length: int, advantage: float = 1.0, begin: int = 0) -> Sampled:
    """Token ids from `begin` on, so that each is told from every other; log-probabilities -id and -id / 10."""
    ids = np.arange(begin, begin + prompt + length)
    own = ids[prompt:].astype(np.float32)
    return Sampled(ids[:prompt], ids[prompt:], -own, -own / 10, advantage)


def test_two_answers_in_a_sequence_by_hand():
    """Prompts of 2 and 1 tokens with answers of 2 and 3: 3 and 3 predictions in a sequence of 8.

    First: tokens 0 1 2, labels 1 2 3, of which 2 and 3 are the answer's. Second: 10 11 12 -> 11 12 13, all the
    answer's.
    """
    found = lay_answers([answer(2, 2, 0.5), answer(1, 3, -2.0, begin=10)], 8, share=0.25)
    assert found["tokens"].tolist() == [0, 1, 2, 10, 11, 12, 0, 0]
    assert found["labels"].tolist() == [1, 2, 3, 11, 12, 13, 0, 0]
    assert found["loss_mask"].tolist() == [0, 1, 1, 1, 1, 1, 0, 0]
    assert found["position_ids"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert found["answers"].tolist() == [-1, 0, 0, 1, 1, 1, -1, -1]
    assert found["old"].tolist() == [0, -2, -3, -11, -12, -13, 0, 0]
    torch.testing.assert_close(found["reference"], found["old"] / 10)
    assert found["advantage"].tolist() == [0, 0.5, 0.5, -2, -2, -2, 0, 0]
    assert found["share"].item() == 0.25


def test_an_update_fills_its_sequences_and_adds_empty_ones():
    """Five answers of 3 predictions in sequences of 7: two each, so three sequences; a unit of 2 makes them four."""
    update = Update([answer(2, 2, begin=10 * i) for i in range(5)], 1.0, 7, unit=2, seed=0)
    assert (len(update), update.tokens) == (4, 15)
    samples = [update[index] for index in range(4)]
    assert sorted(int(sample["answers"].max() + 1) for sample in samples) == [0, 1, 2, 2]
    firsts = sorted(int(each) for sample in samples for each in sample["labels"][sample["loss_mask"] > 0])
    assert firsts == sorted(10 * i + j for i in range(5) for j in (2, 3))
    assert len({tuple(sample) for sample in samples}) == 1  # all collate
    assert samples[-1]["answers"].max() == -1


def test_data_parallel_ranks_share_the_sequences(monkeypatch: pytest.MonkeyPatch):
    """Four sequences of one answer each, micro-batches of one, two ranks: 0 and 2, 1 and 3; two micro-batches each."""
    from bielik_nemo.engine import policy_data

    seen = {}
    for rank in (0, 1):
        monkeypatch.setattr(policy_data.parallel_state, "get_data_parallel_rank", lambda rank=rank: rank)
        monkeypatch.setattr(policy_data.parallel_state, "get_data_parallel_world_size", lambda: 2)
        data = PolicyData.__new__(PolicyData)
        data.micro_batch_size = 1
        update = Update([answer(1, 2, begin=10 * i) for i in range(4)], 1.0, 2, unit=2, seed=0)
        data.begin(update)
        assert data.tokens == 8
        step = data.on_megatron_step_start(_Step(0))
        assert step.num_microbatches == 2
        drawn = iter([("number",)])
        seen[rank] = [next(data.micro_batches(drawn))[0]["tokens"] for _ in range(2)]
        assert next(drawn, None) is None  # one number for the whole update
    want = [update[index]["tokens"].tolist() for index in range(4)]
    assert [each.squeeze(0).tolist() for each in (seen[0][0], seen[1][0], seen[0][1], seen[1][1])] == want


def test_numbers_go_beyond_the_run():
    """As NeMo's loader wants it when nothing is left to do."""
    numbers = Numbers("tasks", 3)
    assert len(numbers) == 4 and [numbers[i]["number"].item() for i in range(4)] == [0, 1, 2, 3]


def test_what_is_saved_is_loaded(tmp_path: Path):
    groups = [[answer(2, 3, 0.1), answer(2, 1, -0.1)], [answer(5, 2, 0.0), answer(5, 7, 1e-9)]]
    save(tmp_path / "00000.safetensors", groups, {"reward": 0.5})
    found, told = load(tmp_path / "00000.safetensors", group_size=2)
    assert told == {"reward": 0.5} and [path.name for path in tmp_path.iterdir()] == ["00000.safetensors"]
    for each, want in zip(chain(*found), chain(*groups), strict=True):
        assert each.advantage == want.advantage
        for name in ("prompt", "answer", "old", "reference"):
            assert np.array_equal(getattr(each, name), getattr(want, name))
            assert getattr(each, name).dtype == getattr(want, name).dtype


class _Step:
    """A stand-in for NeMo's, a dataclass too."""

    def __new__(cls, count: int):
        from dataclasses import make_dataclass

        return make_dataclass("Step", ["num_microbatches"])(count)
