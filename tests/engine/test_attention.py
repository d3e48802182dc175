"""What keeps texts of one sequence apart; test_sft.py and test_distillation.py train with it."""

from __future__ import annotations

import torch


def test_a_token_sees_those_before_it_in_its_own_text():
    """Texts of 2 and 3 tokens: two triangles on the diagonal; True is where it may not look."""
    from bielik_nemo.engine import attention

    seen = ~attention.block_mask(torch.tensor([0, 2, 5]))
    assert seen.int().tolist() == [
        [
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [0, 0, 1, 0, 0],
            [0, 0, 1, 1, 0],
            [0, 0, 1, 1, 1],
        ]
    ]


def test_bounds_of_the_texts_in_a_sample():
    """Texts of 2, 2, 1 and 2 tokens."""
    from bielik_nemo.engine import attention

    found = attention.bounds(torch.tensor([0, 2, 4, 5, 7]))
    assert found["cu_seqlens"].tolist() == [0, 2, 4, 5, 7, -1, -1, -1]
    assert found["cu_seqlens_argmin"].item() == 5 and found["max_seqlen"].item() == 2
    assert attention.bounds(torch.tensor([0, 1, 2]))["cu_seqlens"].tolist() == [0, 1, 2]  # nothing is left to fill


def test_nemo_takes_the_bounds_for_those_of_packed_sequences():
    from torch.utils.data import default_collate

    from bielik_nemo.engine import attention

    batch = default_collate([attention.bounds(torch.tensor([0, 2, 4, 5, 7]))])
    params = attention.of(batch)["packed_seq_params"]
    assert params.cu_seqlens_q.tolist() == params.cu_seqlens_kv.tolist() == [0, 2, 4, 5, 7]
    assert (params.max_seqlen_q.item(), params.qkv_format) == (2, "thd")


def test_what_a_sample_carries_on_this_machine():
    """Without Transformer Engine a mask; a batch without one leaves attention to the model."""
    from bielik_nemo.engine import attention

    sample = attention.apart([0, 3], 4)
    assert set(sample) < set(attention.KEYS)
    assert set(attention.of(sample)) <= {"attention_mask", "packed_seq_params"}
    assert attention.of({"tokens": torch.zeros(1, 4)}) == {}
