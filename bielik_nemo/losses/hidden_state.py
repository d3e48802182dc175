"""Cosine distance of hidden states: the student's stream after a layer should point where the teacher's does.

    L = sum_i m_i * (1 - cos(W s_i, t_i))

for one pair of layers, s and t being their outputs (Minitron, arXiv 2407.14679 section 3: of the distances tried there
cosine was best; W is trained with the student, and is there only where the widths differ). The trainer takes the mean
over tokens and adds up the pairs. Streams are not sharded over the vocabulary: every tensor-parallel rank has the whole
of them and finds the same sum and the same gradient, so nothing is communicated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bielik_nemo.losses.vocab_parallel import check_tokens, upcast


def hidden_state(
    student: Tensor, teacher: Tensor, mask: Tensor, projection: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum over counted tokens of the cosine distance, 0 to 2, and the number of counted tokens.

    Args:
        student: `[s, b, h]`; gradients flow here and to the projection.
        teacher: `[s, b, h_t]`, any floating dtype.
        mask: `[s, b]`, weight of each token, usually 0 or 1.
        projection: `[h_t, h]`; None: the widths are the same.

    Returns:
        The sum (fp64 for an fp64 student) and `mask.sum()`, both fp32 scalars.

    Raises:
        ValueError: shapes differ.
    """
    check_tokens(student, mask=mask)
    projected = student if projection is None else torch.nn.functional.linear(student, projection)
    if projected.shape != teacher.shape:
        raise ValueError(f"student {list(projected.shape)} (projected) and teacher {list(teacher.shape)} must agree")
    projected = upcast(projected)
    cosine = torch.nn.functional.cosine_similarity(projected, teacher.detach().to(projected.dtype), dim=-1)
    return ((1 - cosine) * mask).sum(), mask.sum(dtype=torch.float32)
