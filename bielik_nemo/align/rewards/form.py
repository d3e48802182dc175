r"""Form: the answer came to its end, and has one final answer for others to find.

Right is an answer that the model ended itself, with exactly `boxes` closed `\boxed{...}` that hold something, one
unless told otherwise; 0 of them where another form is wanted, such as a tool call. Without it a model that writes a
box for every thought, or none, is told nothing by a reward that reads the last one. Boxes count wherever they stand.
"""

from __future__ import annotations

from bielik_nemo.align.boxed import BOXED, group
from bielik_nemo.align.reward import Completion, Reward, Task, Verdict


def form(completion: Completion, task: Task, boxes: float = 1.0) -> Reward:
    """1 where the form is right, else 0; parts `ended` and `boxed`, which must both be 1."""
    parts = {"ended": float(completion.ended), "boxed": float(_has_boxes(completion.text, boxes))}
    right = all(parts.values())
    return Reward(float(right), Verdict.CORRECT if right else Verdict.WRONG, parts)


def _has_boxes(text: str, wanted: float) -> bool:
    if text.count(BOXED) != wanted:  # first, so that no long text of open boxes is walked again for each
        return False
    _, *behind = text.split(BOXED)
    return all((held := group(rest, 0)) is not None and held.strip() for rest in behind)
