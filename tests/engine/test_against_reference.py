"""A vocabulary of two words, two pairs of answers of one word each, and a reference to which both words are the same.

The model gives the chosen word of the first pair 3/4 and of the second 1/4, the rejected one of both 1/4:
  likelier: 1 of 2 (1/4 is no more than 1/4).
  log-ratios, of 1/2: chosen log 3/2 and log 1/2, rejected log 1/2 twice.
  margin: beta (log 3/2 - log 1/2) and 0, in the mean beta log 3 / 2; accuracy 1/2.
  KL(reference || model) of every token: 1/2 log(1/2 / 3/4) + 1/2 log(1/2 / 1/4) = 1/2 log 4/3.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from bielik_nemo.engine import against_reference, model
from bielik_nemo.engine.preference import Preference

BETA = 0.5


def at(word: int, probability: float) -> list[float]:
    logits = [math.log(1 - probability)] * 2
    logits[word] = math.log(probability)
    return logits


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """One sequence of five positions: an answer's word at each of the first four, nothing at the last."""
    words = [1, 0, 0, 1, 0]
    batch = {
        "words": torch.tensor([words]),
        "loss_mask": torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0]]),
        "answers": torch.tensor([[0, 1, 2, 3, -1]]),
        # A third place without a pair.
        "reference": torch.tensor([[[math.log(0.5)] * 2] * 2 + [[math.nan] * 2]]),
    }
    logits = {
        "model": [at(w, p) for w, p in zip(words, (3 / 4, 1 / 4, 1 / 4, 1 / 4, 0.9), strict=True)],
        "reference": [at(w, 1 / 2) for w in words[:-1]] + [at(0, 0.1)],
    }
    # [s, b, v], with a column of padding that must not count.
    found = {name: torch.tensor([[*row, 9.0] for row in rows]).unsqueeze(1) for name, rows in logits.items()}
    monkeypatch.setattr(against_reference, "_logits", lambda name, _: found[name])
    monkeypatch.setattr(model, "tp_group", lambda: None)
    preference = Preference("bielik", BETA, None, 2.5, 0.0, False, vocab_size=2)
    return SimpleNamespace(preference=preference, batches=lambda: [batch, batch])


def test_by_hand(pairs):
    done = []
    found = against_reference.measure("model", pairs, "reference", lambda: done.append(1))
    assert found == pytest.approx(
        {
            "likelier": 0.5,
            "accuracy": 0.5,
            "margin": BETA * math.log(3) / 2,
            "chosen_log_ratio": (math.log(3 / 2) - math.log(2)) / 2,
            "rejected_log_ratio": -math.log(2),
            "kl": math.log(4 / 3) / 2,
        },
        abs=1e-6,
    )
    assert len(done) == 2


def test_the_reference_itself_is_only_asked_which_answer_is_likelier(pairs):
    assert against_reference.measure("reference", pairs) == {"likelier": 0.0}
