"""Documents of a sample that are kept apart; test_distillation.py trains on them, test_teacher_pass.py reads them."""

from __future__ import annotations

import torch


def test_where_the_documents_of_a_sample_begin():
    """Ends of 9 at 1, 3 and 4; the one at 6 ends the sample: documents of 2, 2, 1 and 2 tokens."""
    from bielik_nemo.engine.text_dataset import starts

    assert starts(torch.tensor([5, 9, 7, 9, 9, 3, 9]), eod=9) == [0, 2, 4, 5]
    assert starts(torch.tensor([9, 9]), eod=9) == [0, 1]
    assert starts(torch.tensor([1, 2]), eod=9) == [0]
