"""Length: no more tokens than a limit, softly, as the overlong punishment of DAPO (arXiv 2503.14476, eq. 13).

    r = 1 for n <= limit,   (most - n) / (most - limit) between,   0 for n >= most

with n the answer's tokens, the end mark among them. DAPO's is r - 1, with most = L_max and most - limit = L_cache; the
constant makes no difference to advantages. An answer that was cut at the longest length has that many tokens.
"""

from __future__ import annotations

from bielik_nemo.align.reward import Completion, Reward, Task, Verdict


def length(completion: Completion, task: Task, *, limit: float, most: float) -> Reward:
    """1 down to 0, right while it is 1; the part `tokens`.

    Args:
        completion: the answer.
        task: not looked at.
        limit: tokens up to which all is well.
        most: tokens from which on nothing is.

    Raises:
        ValueError: `limit` is not below `most`.
    """
    if not 0 <= limit < most:
        raise ValueError(f"limit={limit:g}, most={most:g}; allowed: 0 <= limit < most")
    value = min(1.0, max(0.0, (most - completion.tokens) / (most - limit)))
    verdict = Verdict.CORRECT if completion.tokens <= limit else Verdict.WRONG
    return Reward(value, verdict, {"tokens": float(completion.tokens)})
