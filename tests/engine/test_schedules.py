"""The learning rate of every step against its formula, and the same after a resume; peak 8, end 2."""

from __future__ import annotations

from math import cos, pi, sqrt

import fiddle as fdl
import pytest
import torch

from bielik_nemo.config import Config
from bielik_nemo.config_training import Optim
from bielik_nemo.engine import cpu

cpu.enable()

from bielik_nemo.engine import schedules, training  # noqa: E402

STEPS = 10
BY_HAND = {
    # Two steps of warm-up: a third, two thirds, the whole in step 2. The cosine goes over the 8 steps from there.
    ("cosine", 2, 0): [8 / 3, 16 / 3, *(2 + 3 * (1 + cos(pi * i / 8)) for i in range(8))],
    # Constant to step 6, then from step 10 - 4 four steps down by 6 / 4 each: the next one would have 2.
    ("wsd", 2, 4): [8 / 3, 16 / 3, 8, 8, 8, 8, 8, 6.5, 5, 3.5],
    ("wsd", 0, 10): [8 - 0.6 * i for i in range(10)],
    ("wsd", 3, 7): [2, 4, 6, 8, *(8 - 6 / 7 * i for i in range(1, 7))],
    ("constant", 4, 0): [1.6, 3.2, 4.8, 6.4, *[8] * 6],
    ("constant", 0, 0): [8] * 10,
}


def made(name: str, warmup: int, decay: int) -> tuple[torch.optim.Optimizer, object]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=8.0)
    settings = Optim(schedule=name, warmup_steps=warmup, decay_steps=decay)
    module = fdl.build(schedules.schedule(settings, STEPS, min_lr=2.0))
    return optimizer, module.scheduler(None, optimizer)["lr_scheduler"]["scheduler"]


def rates(optimizer: torch.optim.Optimizer, scheduler: object, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("case", BY_HAND, ids=str)
def test_every_step(case):
    assert rates(*made(*case), STEPS) == pytest.approx(BY_HAND[case], abs=1e-12)


@pytest.mark.parametrize("at", [1, 6, 8])
def test_a_resumed_schedule_goes_on(at):
    """In warm-up, at the beginning of the decay and in it."""
    case = ("wsd", 2, 4)
    optimizer, scheduler = made(*case)
    before = rates(optimizer, scheduler, at)
    again = made(*case)
    again[0].load_state_dict(optimizer.state_dict())
    again[1].load_state_dict(scheduler.state_dict())
    assert before + rates(*again, STEPS - at) == pytest.approx(BY_HAND[case], abs=1e-12)


def test_adaptive_learning_rate():
    """A quarter of the reference batch: half of the rate, at the peak and at the end; 4 * 256 tokens are a batch."""
    assert schedules.adaptive(8.0, 1024, 4096) == 4.0
    assert schedules.adaptive(8.0, 8192, 4096) == 8.0 * sqrt(2)
    assert schedules.adaptive(8.0, 1024, None) == 8.0
    config = Config()
    config.data.global_batch_size, config.data.seq_length = 4, 256
    config.optim = Optim(lr=8.0, min_lr=2.0, reference_tokens=4096)
    optimizer = training.optimizer(config)
    assert (optimizer.config.lr, optimizer.lr_scheduler.min_lr) == (4.0, 1.0)
