"""The adapter between the pure losses and NeMo: what is handed over, and what is divided by what."""

from __future__ import annotations

import pytest
import torch

from bielik_nemo.engine import distributed, forward
from bielik_nemo.engine.criterion import Criterion, SumsReduction
from bielik_nemo.losses import agreement, mixture, most_likely

WEIGHTS = {"forward_kl": 2.0, "reverse_kl": 0.0, "cross_entropy": 0.5}


def test_sums_on_captured_logits():
    """Model Optimizer hands over (logits, bias) in [s, b, v], Megatron labels and mask in [b, s]; 5 of 6 count."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 2, 8, generator=generator) for _ in range(2))
    student.requires_grad_()
    labels = torch.randint(7, (2, 3), generator=generator)
    mask = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    criterion = Criterion(WEIGHTS, 2.0, 0.5, 7)
    with distributed.model_parallel():
        sums = criterion((student, None), (teacher, None), labels=labels, mask=mask)
    total, _, parts = mixture(student, teacher, labels.T, mask.T, WEIGHTS, temperature=2.0, vocab_size=7)
    agreed, _ = agreement(student, most_likely(teacher, vocab_size=7), mask.T, vocab_size=7)
    assert criterion.names == ["loss", "agreement", "kl", "cross_entropy"]
    assert sums.tolist() == [total.item(), agreed.item(), *(part.item() for part in parts.values()), 5]
    (found,), (wanted,) = torch.autograd.grad(sums[0], student), torch.autograd.grad(total, student)
    assert torch.equal(found, wanted)


def test_one_division_by_all_tokens():
    """Micro-batches of 1, 0 and 3 counted tokens, losses 2, 0 and 6: 8 / 4; the means' mean would be 2.67 or 2."""
    reduction = SumsReduction(lambda batch, out: out, ["loss", "agreement", "kl"])
    sums = [torch.tensor(each, requires_grad=True) for each in ([2.0, 1, 4, 1], [0.0, 0, 0, 0], [6.0, 2, 3, 3])]
    outputs = [reduction.forward({}, each) for each in sums]
    assert [(loss.item(), count.item(), loss.requires_grad) for loss, count, _ in outputs] == [
        (2, 1, True),
        (0, 0, True),
        (6, 3, True),
    ]
    assert all(loss._base is None for loss, *_ in outputs)  # else Megatron's pipeline schedule stops
    assert outputs[0][1].dtype == torch.int
    assert not any(report["sums"].requires_grad for *_, report in outputs)
    with distributed.model_parallel():
        loss = reduction.reduce([report for *_, report in outputs])
        assert loss.item() == 2
        found = reduction.means(hidden_state=torch.tensor(1.0))
        assert found == pytest.approx({"loss": 2, "agreement": 0.75, "kl": 1.75, "hidden_state": 0.25})


def test_a_rank_without_the_loss_receives_as_many_sums(monkeypatch: pytest.MonkeyPatch):
    """A pipeline stage that is not the last never reduces: it gets the last one's sums, and their count."""
    monkeypatch.setattr(forward, "from_last_stage", lambda sums: sums.copy_(torch.tensor([6.0, 1, 2])))
    reduction = SumsReduction(lambda batch, out: out, ["loss", "agreement"])
    with distributed.model_parallel():
        assert reduction.means() == {"loss": 3, "agreement": 0.5}
