"""Log-probabilities of answers, from logits to one number each."""

import math

import pytest
import torch
from torch import Tensor

from bielik_nemo.losses import answer_log_probs, token_log_probs

S, B, V, REAL = 6, 2, 24, 19
ANSWERS = torch.tensor([[0, 0, -1, 1, 1, 1], [2, -1, -1, 0, 3, -1]]).T  # [s, b]


def make() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(S, B, V, dtype=torch.float64, generator=random)
    logits[..., REAL:] = 1e30
    return logits.requires_grad_(), torch.randint(REAL, (S, B), generator=random)


def test_by_hand():
    """Three words, logits log q; one sequence of three tokens, the first two of answer 0, the last of answer 1.

    Token 1: q = (1/4, 1/4, 1/2), label 2: log 1/2. Token 2: q = (1/2, 1/4, 1/4), label 1: log 1/4. Token 3: q =
    (1/8, 1/8, 3/4), label 0: log 1/8. Answer 0: log 1/8 in two tokens; answer 1: log 1/8 in one; answer 2: nothing.
    Gradient of answer 0 times 2: 2 (label - q) at its tokens, (-1/2, -1/2, 1) and (-1, 3/2, -1/2), and none elsewhere.
    """
    q = torch.tensor([[[1 / 4, 1 / 4, 1 / 2]], [[1 / 2, 1 / 4, 1 / 4]], [[1 / 8, 1 / 8, 3 / 4]]], dtype=torch.float64)
    logits, labels = q.log().requires_grad_(), torch.tensor([[2], [1], [0]])
    sums, tokens = answer_log_probs(logits, labels, torch.ones(3, 1), torch.tensor([[0], [0], [1]]), 3)
    torch.testing.assert_close(sums, torch.tensor([[-math.log(8), -math.log(8), 0]], dtype=torch.float64))
    assert tokens.tolist() == [[2, 1, 0]]
    (2 * sums[0, 0]).backward()
    want = [[[-1 / 2, -1 / 2, 1]], [[-1, 3 / 2, -1 / 2]], [[0, 0, 0]]]
    torch.testing.assert_close(logits.grad, torch.tensor(want, dtype=torch.float64))


def test_equals_the_definition_without_padding():
    """Of two sequences side by side, each answer by its own sequence's numbers; and a token that is masked out."""
    logits, labels = make()
    mask = torch.ones(S, B)
    mask[4, 0] = 0
    log_q = logits[..., :REAL].log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(token_log_probs(logits, labels, vocab_size=REAL), log_q)
    sums, tokens = answer_log_probs(logits, labels, mask, ANSWERS, 4, vocab_size=REAL)
    places = [[[0, 1], [3, 5], [], []], [[3], [], [0], [4]]]
    want = torch.stack([torch.stack([log_q[at, b].sum() for at in each]) for b, each in enumerate(places)])
    torch.testing.assert_close(sums, want)
    assert tokens.tolist() == [[2, 2, 0, 0], [1, 0, 1, 1]]
    weights = torch.randn(2, 4, dtype=torch.float64)
    torch.testing.assert_close(*(torch.autograd.grad((x * weights).sum(), logits)[0] for x in (sums, want)))


def test_many_tokens_are_added_without_loss():
    """8192 tokens of log 1/2 in fp32: -8192 log 2 = -5678.2617 to a rounding at the end (2^-12 = 0.0002)."""
    logits, zeros = torch.zeros(8192, 1, 2), torch.zeros(8192, 1, dtype=torch.int64)
    sums, _ = answer_log_probs(logits, zeros, torch.ones(8192, 1), zeros, 1)
    assert sums.dtype == torch.float32
    assert sums.item() == pytest.approx(8192 * token_log_probs(logits[:1], zeros[:1]).item(), abs=2**-12)


def test_shapes_that_do_not_go_together():
    logits, labels = make()
    with pytest.raises(ValueError, match=r"answers is \[2, 6\], logits want \[6, 2\]"):
        answer_log_probs(logits, labels, torch.ones(S, B), ANSWERS.T, 4)
