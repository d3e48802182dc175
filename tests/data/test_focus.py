"""FOCUS by hand, in two auxiliary dimensions.

Old ids 0 to 3 with rows (1, 0), (0, 1), (1, 1), (4, 4). New ids 0, 1 and 2 are old 3, 0 and 1; 3 and 4 are new; 5 is
never seen. Auxiliary embeddings of 1, 2, 3, 4: (1, 0), (0, 2), (3, 4), (5, 0); new id 0 has none.

Cosines of new id 3, (0.6, 0.8), with those of 1 and 2, (1, 0) and (0, 1): 0.6 and 0.8. Sparsemax of (0.6, 0.8): both
are in its support, since 1 + 2 * 0.6 > 1.4; tau = (1.4 - 1) / 2 = 0.2; weights 0.4 and 0.6: row (0.4, 0.6).
Of new id 4, with cosines 1 and 0: 1 + 2 * 0 is not above their sum, so that only the first is; weight 1: row (1, 0).
"""

from __future__ import annotations

import pytest
import torch

from bielik_nemo.data import focus

pytest.importorskip("entmax", reason="entmax is not installed: pip install 'bielik_nemo[tokenizer]'")
OLD = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [4.0, 4.0]])
SHARED = {0: 3, 1: 0, 2: 1}
AUXILIARY = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0], [5.0, 0.0]])


@pytest.fixture
def planned() -> focus.Plan:
    return focus.plan(6, 4, SHARED, [1, 2, 3, 4], AUXILIARY)


def test_where_each_row_comes_from(planned: focus.Plan):
    assert planned.copied.tolist() == [[0, 1, 2], [3, 0, 1]]
    assert planned.mixed.tolist() == [3, 4] and planned.drawn.tolist() == [5]
    assert planned.weights.to_dense().tolist() == [
        pytest.approx([0.4, 0.6, 0, 0], abs=1e-6),
        pytest.approx([1, 0, 0, 0], abs=1e-6),
    ]


def test_rows_by_hand(planned: focus.Plan):
    """Drawn are rows with the columns' means, (6 / 4, 6 / 4), and deviations of the old matrix."""
    made = focus.embeddings(OLD, planned, seed=1)
    assert made[:3].tolist() == [[4, 4], [1, 0], [0, 1]]  # bit for bit
    assert made[3].tolist() == pytest.approx([0.4, 0.6]) and made[4].tolist() == pytest.approx([1, 0])
    noise = torch.randn(1, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(made[5:], torch.tensor([[1.5, 1.5]]) + OLD.std(0) * noise)
    assert torch.equal(made, focus.embeddings(OLD, planned, seed=1))


def test_each_matrix_is_mixed_of_its_own_rows(planned: focus.Plan):
    head = focus.embeddings(OLD * 10, planned, seed=1)
    assert head[3].tolist() == pytest.approx([4, 6]) and head.dtype == torch.float32
    assert focus.embeddings(OLD.bfloat16(), planned, seed=1).dtype == torch.float32


def test_many_tokens_in_parts_are_the_same_as_each_alone(monkeypatch: pytest.MonkeyPatch):
    new, anchors = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), torch.randn(9, 5)
    whole = focus.sparse_weights(new, anchors).to_dense()
    monkeypatch.setattr(focus, "ROWS", 2)
    torch.testing.assert_close(focus.sparse_weights(new, anchors).to_dense(), whole)
    assert whole.sum(1).tolist() == pytest.approx([1] * 7) and (whole >= 0).all()
    assert whole.to_sparse()._nnz() < 63  # it is sparse


def test_nothing_new(planned: focus.Plan):
    copied = focus.plan(2, 4, {0: 3, 1: 0}, [1], AUXILIARY[:1])
    assert len(copied.mixed) == len(copied.drawn) == 0
    assert focus.embeddings(OLD, copied, seed=1).tolist() == [[4, 4], [1, 0]]
