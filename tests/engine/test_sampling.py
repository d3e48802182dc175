"""Drawing a token by one number: the inverse of the cumulative distribution, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bielik_nemo.engine.rollout import Sampling
from bielik_nemo.engine.sampling import draw, noise, restricted

FOUR = torch.tensor([0.1, 0.4, 0.2, 0.3])


def tokens(numbers: list[float], probabilities: torch.Tensor = FOUR, **settings) -> list[int]:
    logits = probabilities.log().expand(len(numbers), -1) + 7.0  # logits know no offset
    return draw(logits, torch.tensor(numbers, dtype=torch.float64), Sampling(1, (), **settings)).tokens.tolist()


def test_tokens_by_hand():
    """Sums of 0.1, 0.4, 0.2, 0.3 are 0.1, 0.5, 0.7, 1: a number falls to the first word whose sum is above it."""
    assert tokens([0.0, 0.0999, 0.1001, 0.4999, 0.5001, 0.6999, 0.7001, 1 - 2**-53]) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_word_that_cannot_be_is_never_drawn():
    """Neither the first for 0, nor the last for the largest number below 1."""
    assert tokens([0.0, 0.4, 1 - 2**-53], torch.tensor([0.0, 0.5, 0.5, 0.0])) == [1, 1, 2]


def test_temperature_by_hand():
    """At 1/2 probabilities are squared: 1, 16, 4, 9 of 30 sum up to 1/30, 17/30, 21/30."""
    edges = [0.032, 0.035, 0.565, 0.568, 0.699, 0.701]
    assert tokens(edges, temperature=0.5) == [0, 1, 1, 2, 2, 3]
    assert tokens(edges, temperature=0.0) == [1] * 6


def test_top_k_by_hand():
    """The two likeliest are words 1 and 3, with 4/7 and 3/7."""
    assert tokens([0.0, 0.571, 0.572, 0.999], top_k=2) == [1, 1, 3, 3]
    assert tokens([0.05, 0.95], top_k=4) == tokens([0.05, 0.95], top_k=9) == [0, 3]


def test_top_p_by_hand():
    """Words 1 and 3 have 0.7 together: enough for 0.65; for 0.75 word 2 is needed too. One word is always left."""
    assert restricted(FOUR[None], 0, 0.65).tolist() == [pytest.approx([0, 0.4, 0, 0.3])]
    assert restricted(FOUR[None], 0, 0.75).tolist() == [pytest.approx([0, 0.4, 0.2, 0.3])]
    assert restricted(FOUR[None], 0, 1e-9).tolist() == [pytest.approx([0, 0.4, 0, 0])]
    assert restricted(FOUR[None], 0, 1.0).equal(FOUR[None])
    # Among the three that top_k leaves, with 0.9 together, 0.75 of it is 0.675: words 1 and 3 are enough.
    assert restricted(FOUR[None], 3, 0.75).tolist() == [pytest.approx([0, 0.4, 0, 0.3])]


def test_top_p_takes_one_of_equals():
    """Of four equal words, two have half."""
    assert restricted(torch.full((1, 4), 0.25), 0, 0.5).tolist() == [[0.25, 0.25, 0, 0]]


@pytest.mark.parametrize("settings", [{}, {"top_k": 2}, {"top_p": 0.5}, {"temperature": 0.5}, {"temperature": 0.0}])
def test_log_probabilities_are_those_over_all_words(settings):
    """Word 1: ln 0.4, and ln 16/30 at temperature 1/2, whatever was left to draw from."""
    logits = FOUR.log()[None] - 100
    drawn = draw(logits, torch.tensor([0.4], dtype=torch.float64), Sampling(1, (), **settings))
    assert drawn.tokens.tolist() == [1]
    assert drawn.log_probs.tolist() == pytest.approx(
        [math.log(16 / 30 if settings.get("temperature") else 0.4)], abs=1e-6
    )


def test_large_logits_stay_numbers():
    """1e4 apart: the likelier word has probability 1, in bf16 as well."""
    for dtype in (torch.float32, torch.bfloat16):
        drawn = draw(
            torch.tensor([[-5e3, 5e3]], dtype=dtype), torch.tensor([0.0], dtype=torch.float64), Sampling(1, ())
        )
        assert (drawn.tokens.tolist(), drawn.log_probs.tolist()) == ([1], [0.0])


def test_the_distribution_is_that_of_the_probabilities():
    """20,000 draws from 50 words: chi-square with 49 degrees of freedom, whose 99.9 % point is 85.4."""
    logits = torch.linspace(-2, 2, 50).roll(17)
    numbers = torch.from_numpy(np.concatenate([noise(3, key, 0, 100) for key in range(200)]))
    found = draw(logits.expand(20000, -1), numbers, Sampling(1, ())).tokens.bincount(minlength=50)
    wanted = logits.softmax(0) * 20000
    assert ((found - wanted) ** 2 / wanted).sum() < 85.4


def test_noise_is_a_function_of_seed_key_sample_and_place():
    assert (noise(1, 2, 3, 10)[:4] == noise(1, 2, 3, 4)).all()
    others = [noise(*each, 1000) for each in ((1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (-1, 2, 3), (1, -2, 3))]
    assert len({number for each in others for number in each.tolist()}) == 6000
    assert all(((each >= 0) & (each < 1)).all() for each in others)
