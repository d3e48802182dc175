"""A reward of this project."""

from bielik_nemo.align.reward import Completion, Reward, Task, Verdict


def brief(completion: Completion, task: Task, most: float = 8.0) -> Reward:
    """1 for an answer of at most so many tokens."""
    short = completion.tokens <= most
    return Reward(float(short), Verdict.CORRECT if short else Verdict.WRONG, {"tokens": completion.tokens})
