"""Documents of a sample that are kept apart; test_distillation.py trains on them, test_teacher_pass.py reads them."""

from __future__ import annotations

import torch


def test_bounds_of_the_documents_in_a_sample():
    """Ends of 9 at 1, 3 and 4; the one at 6 ends the sample: documents of 2, 2, 1 and 2 tokens."""
    from bielik_nemo.engine.text_dataset import document_bounds

    found = document_bounds(torch.tensor([5, 9, 7, 9, 9, 3, 9]), eod=9)
    assert found["cu_seqlens"].tolist() == [0, 2, 4, 5, 7, -1, -1, -1]
    assert found["cu_seqlens_argmin"].item() == 5 and found["max_seqlen"].item() == 2
    assert document_bounds(torch.tensor([9, 9]), eod=9)["cu_seqlens"].tolist() == [0, 1, 2]  # nothing is left to fill
    assert document_bounds(torch.tensor([1, 2]), eod=9)["cu_seqlens"].tolist() == [0, 2, -1]


def test_nemo_takes_the_bounds_for_those_of_packed_sequences():
    from nemo.collections.llm.gpt.model.base import get_packed_seq_params
    from torch.utils.data import default_collate

    from bielik_nemo.engine.text_dataset import document_bounds

    params = get_packed_seq_params(default_collate([document_bounds(torch.tensor([5, 9, 7, 9, 9, 3, 9]), eod=9)]))
    assert params.cu_seqlens_q.tolist() == params.cu_seqlens_kv.tolist() == [0, 2, 4, 5, 7]
    assert (params.max_seqlen_q.item(), params.qkv_format) == (2, "thd")
