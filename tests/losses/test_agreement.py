"""How often two models' most likely words are the same; over a sharded vocabulary in test_layouts.py."""

import math

import pytest
import torch

from bielik_nemo.losses import agreement, most_likely

NONE = -math.inf


def test_by_hand():
    """Words 2, 0, 1, 1 against 2, 1, 1, 0: the first and the third agree, of weight 1 and 1/2 out of 3."""
    student = torch.tensor([[[0.0, 1, 2], [3, 1, 2]], [[-5, -1, -3], [0, 9, 8]]])
    teacher = torch.tensor([[2, 1], [1, 0]])
    mask = torch.tensor([[1.0, 1.0], [0.5, 0.5]])
    total, count = agreement(student, teacher, mask)
    assert (total.item(), count.item()) == (1.5, 3)
    assert (total.dtype, count.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_first_of_equal_words(dtype: torch.dtype):
    """In bf16 256 and 257 are the same number, too."""
    logits = torch.tensor([[[1.0, 3, 3, 2]], [[0, 0, 0, 0]], [[NONE, NONE, -1e30, -1e30]], [[255, 256, 257, 256]]])
    exact = [[1], [0], [2], [1 if dtype == torch.bfloat16 else 2]]
    assert most_likely(logits.to(dtype)).tolist() == exact


@pytest.mark.parametrize("padding", [1e30, math.inf, math.nan])
def test_padding_is_no_word(padding: float):
    logits = torch.tensor([[[1.0, 2, padding, padding]]])
    assert most_likely(logits, vocab_size=2).item() == 1
    total, _ = agreement(logits, torch.tensor([[1]]), torch.ones(1, 1), vocab_size=2)
    assert total.item() == 1


def test_masks_of_other_types_and_layouts():
    """Megatron's mask is `[b, s]` in memory and comes here transposed; 2 of 3 counted tokens agree."""
    student = torch.eye(4).view(2, 2, 4)
    words = torch.tensor([[0, 1], [0, 3]])
    mask = torch.tensor([[True, True], [False, True]]).T
    total, count = agreement(student, words, mask)
    assert (total.item(), count.item()) == (2, 3)


def test_no_gradient_and_no_copy(peak_bytes):
    """512 tokens of 1024 words in bf16 are 1 MiB: a largest logit and an index for each are 12 bytes a token."""
    student = torch.randn(512, 1, 1024).bfloat16().requires_grad_()
    words, mask = torch.zeros(512, 1, dtype=torch.int64), torch.ones(512, 1)
    assert not agreement(student, words, mask, vocab_size=1000)[0].requires_grad
    assert peak_bytes(lambda: agreement(student, words, mask, vocab_size=1000)) < 64 * 512


def test_shapes_that_do_not_go_together():
    with pytest.raises(ValueError, match=r"words is \[3, 2\], logits want \[2, 3\]"):
        agreement(torch.zeros(2, 3, 4), torch.zeros(3, 2), torch.ones(2, 3))
    with pytest.raises(ValueError, match="vocab_size=5: the logits have 4 columns"):
        most_likely(torch.zeros(2, 3, 4), vocab_size=5)
