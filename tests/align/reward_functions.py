"""Rewards that go wrong in every way, for the tests of what computes them; a user's own module."""

import os
import time

from bielik_nemo.align.reward import Completion, Reward, Task, Verdict


def length(completion: Completion, task: Task, scale: float = 1.0) -> Reward:
    verdict = Verdict.CORRECT if completion.ended else Verdict.WRONG
    return Reward(scale * len(completion.text), verdict, {"tokens": completion.tokens})


def needs(completion: Completion, task: Task, *, limit: float) -> Reward:
    return Reward(limit, Verdict.CORRECT)


def raises(completion: Completion, task: Task) -> Reward:
    raise ValueError("no " + "x" * 10_000)


def leaves(completion: Completion, task: Task) -> Reward:
    raise SystemExit(3)


def dies(completion: Completion, task: Task) -> Reward:
    os._exit(7)


def sleeps(completion: Completion, task: Task, seconds: float = 60.0) -> Reward:
    time.sleep(seconds)
    return Reward(1.0, Verdict.CORRECT)


def computes(completion: Completion, task: Task) -> Reward:
    return Reward(float(9 ** (9**9) % 7), Verdict.CORRECT)  # in C, where no signal is handled


def fills(completion: Completion, task: Task) -> Reward:
    return Reward(float(len(bytearray(2**31))), Verdict.CORRECT)


def recurses(completion: Completion, task: Task) -> Reward:
    return recurses(completion, task)


def nothing(completion: Completion, task: Task) -> Reward:
    return None


def not_finite(completion: Completion, task: Task) -> Reward:
    return Reward(float("nan"), Verdict.CORRECT)


def heavy(completion: Completion, task: Task) -> Reward:
    import sys

    loaded = [name for name in ("torch", "nemo", "megatron", "lightning", "transformers") if name in sys.modules]
    return Reward(float(len(loaded)), Verdict.CORRECT)


def process(completion: Completion, task: Task) -> Reward:
    return Reward(float(os.getpid()), Verdict.CORRECT)


NUMBER = 3
