"""FOCUS: embeddings for a new vocabulary, made of a trained model's old ones (arXiv 2305.14481).

A token that both vocabularies have keeps its embedding. Any other gets a weighted mean of the embeddings of such shared
tokens, with weights of sparsemax over the cosines between auxiliary embeddings, which are learnt on text in the new
vocabulary (auxiliary.py). One that has no auxiliary embedding, because it is not seen there, is drawn from a normal
distribution with the mean and deviation of each column of the old matrix.

The same weights serve the input and the output matrix, each with its own embeddings; the paper has tied models. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 1024
"""Tokens whose weights over all shared ones are computed at a time."""


@dataclass(frozen=True)
class Plan:
    """Where the rows of a new matrix come from; every id below `size` is in one of the three.

    Attributes:
        size: of the new vocabulary.
        copied: `[2, c]` int64: ids of tokens that both have, new and old.
        mixed: `[n]` int64: new ids that are mixed.
        weights: `[n, v_old]` sparse fp32, of which each row adds up to 1.
        drawn: `[d]` int64: new ids for which there is nothing to mix.
    """

    size: int
    copied: Tensor
    mixed: Tensor
    weights: Tensor
    drawn: Tensor


def plan(size: int, old_size: int, shared: dict[int, int], seen: list[int], auxiliary: Tensor) -> Plan:
    """What becomes of each token.

    Args:
        size: of the new vocabulary.
        old_size: rows of the old matrix.
        shared: old id of each new token that both vocabularies have.
        seen: new ids that have an auxiliary embedding, a shared one among them.
        auxiliary: `[len(seen), d]` of these.
    """
    import torch

    rows = {index: row for row, index in enumerate(seen)}
    anchors = [index for index in shared if index in rows]
    mixed = [index for index in seen if index not in shared]
    taken = set(shared) | set(mixed)
    weights = sparse_weights(auxiliary[[rows[i] for i in mixed]], auxiliary[[rows[i] for i in anchors]])
    row, column = weights.indices()
    old = torch.tensor([shared[index] for index in anchors], dtype=torch.long)
    return Plan(
        size=size,
        copied=torch.tensor([list(shared), list(shared.values())], dtype=torch.long),
        mixed=torch.tensor(mixed, dtype=torch.long),
        weights=torch.sparse_coo_tensor(
            torch.stack([row, old[column]]), weights.values(), (len(mixed), old_size), check_invariants=True
        ).coalesce(),
        drawn=torch.tensor([index for index in range(size) if index not in taken], dtype=torch.long),
    )


def sparse_weights(new: Tensor, anchors: Tensor) -> Tensor:
    """Sparsemax over the cosines of each new token with all anchors: sparse `[n, m]`, whose rows add up to 1.

    Args:
        new: `[n, d]` auxiliary embeddings.
        anchors: `[m, d]` of shared tokens.
    """
    import torch
    from entmax import sparsemax
    from torch.nn.functional import normalize

    if not len(new):
        return torch.zeros(0, len(anchors)).to_sparse()
    directions = normalize(anchors, dim=1)
    parts = [sparsemax(normalize(some, dim=1) @ directions.T, dim=1).to_sparse() for some in new.split(ROWS)]
    return torch.cat(parts).coalesce()


def embeddings(old: Tensor, planned: Plan, seed: int) -> Tensor:
    """The new matrix, fp32 `[size, h]`.

    Args:
        old: `[v_old, h]`.
        planned: for its vocabulary.
        seed: of the rows that are drawn.
    """
    import torch

    old = old.float()
    made = old.new_empty(planned.size, old.shape[1])
    made[planned.copied[0]] = old[planned.copied[1]]
    made[planned.mixed] = planned.weights @ old
    noise = torch.randn(len(planned.drawn), old.shape[1], generator=torch.Generator().manual_seed(seed))
    made[planned.drawn] = old.mean(0) + old.std(0) * noise
    return made
