"""By hand, of the model in conftest.py; tests/engine/test_layout.py compares with Megatron."""

from dataclasses import replace

import pytest

from bielik_nemo.architecture import Architecture
from bielik_nemo.budget.ranks import parameters, ranks


def test_ends_of_the_pipeline_have_the_vocabulary(source: Architecture):
    """592 in a layer; a padded matrix of 1024 at each end; the last norm's 8 at the end. Whole: 2792 + 2 * 224 pads."""
    assert ranks(source, 1, 2) == [
        {"embedding": 1024, "layers": 592, "norm": 0, "output": 0, "num_layers": 1},
        {"embedding": 0, "layers": 592, "norm": 8, "output": 1024, "num_layers": 1},
    ]
    (whole,) = ranks(source, 1, 1)
    assert parameters(whole) == 2792 + 2 * 28 * 8


def test_a_tied_model_has_its_matrix_once_on_each_end(source: Architecture):
    tied = replace(source, tie_embeddings=True)
    assert [rank["output"] for rank in ranks(tied, 1, 1)] == [0]
    assert [(rank["embedding"], rank["output"]) for rank in ranks(tied, 1, 2)] == [(1024, 0), (0, 1024)]


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_norms_are_on_every_tensor_rank(tp: int):
    model = Architecture(4, 64, 160, 8, 8, 16, 256, False)
    (found,) = ranks(model, tp, 1)
    norms = 4 * 2 * 64 + 64
    assert (parameters(found) - norms) * tp == model.num_parameters() - norms
