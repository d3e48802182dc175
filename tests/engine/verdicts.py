"""A reward for random models: of any answer to most tasks something, of some nothing."""

from bielik_nemo.align.reward import Completion, Reward, Task, Verdict


def verdicts(completion: Completion, task: Task) -> Reward:
    """0, 1/2 or 1 by what its characters add up to, or nothing; of a task whose answer is `flat` always 1/2."""
    number = sum(map(ord, completion.text)) % 7
    if task.answer == "flat":
        return Reward(0.5, Verdict.CORRECT)
    if number == 6:
        return Reward(0.0, Verdict.UNVERIFIABLE)
    value = number // 2 / 2
    return Reward(value, Verdict.CORRECT if value == 1 else Verdict.WRONG, {"number": number})


def raising(completion: Completion, task: Task) -> Reward:
    """Nothing but an error."""
    raise ValueError("no idea")
