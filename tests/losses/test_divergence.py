"""What holds of every divergence of student from teacher: torch's own log_softmax in float64 gives value and gradient.

The worth of each by hand, and what sets it apart, is in the test file of its own.
"""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from bielik_nemo.losses import forward_kl, jensen_shannon, reverse_kl

S, B, V, REAL = 5, 3, 24, 19  # positions, batch, columns, and how many of the columns are vocabulary

Loss = Callable[..., tuple[Tensor, Tensor]]


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def jsd(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    log_r = torch.logaddexp(log_p + math.log(beta), log_q + math.log(1 - beta))
    return beta * kl(log_p, log_r) + (1 - beta) * kl(log_q, log_r)


DEFINITIONS = {  # loss of logits, and its value for one token from log p of the teacher and log q of the student
    "forward": (forward_kl, kl),
    "reverse": (reverse_kl, lambda log_p, log_q: kl(log_q, log_p)),
    "jensen-shannon": (jensen_shannon, partial(jsd, beta=0.5)),
    "jensen-shannon 0.1": (partial(jensen_shannon, beta=0.1), partial(jsd, beta=0.1)),
}


@pytest.fixture(params=DEFINITIONS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def loss(name: str) -> Loss:
    return DEFINITIONS[name][0]


def make(seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher logits `[s, b, v]`, the student's asking for a gradient, and a 0/1 mask `[s, b]`."""
    random = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(2, S, B, V, dtype=torch.float64, generator=random)).to(dtype)
    mask = (torch.rand(S, B, generator=random) > 0.4).float()
    return student.requires_grad_(), teacher, mask


def reference(
    name: str,
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    vocab_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition in float64: T^2 * sum_i m_i D_i, and its gradient, padding cut off first."""
    x = student.detach().double().requires_grad_()
    log_q = (x[..., :vocab_size] / temperature).log_softmax(-1)
    log_p = (teacher.detach().double()[..., :vocab_size] / temperature).log_softmax(-1)
    total = temperature**2 * (mask.double() * DEFINITIONS[name][1](log_p, log_q)).sum()
    return total.detach(), torch.autograd.grad(total, x)[0]


def check(
    name: str,
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    rtol: float = 1e-12,
    atol: float = 1e-12,
    **options,
) -> None:
    total, count = DEFINITIONS[name][0](student, teacher, mask, **options)
    (grad,) = torch.autograd.grad(total, student)
    want, want_grad = reference(name, student, teacher, mask, **options)
    assert grad.dtype == student.dtype
    assert count.item() == pytest.approx(mask.double().sum().item())
    torch.testing.assert_close(total.detach().double(), want, rtol=rtol, atol=atol)
    torch.testing.assert_close(grad.double(), want_grad, rtol=rtol, atol=atol)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_definition(name: str, dtype: torch.dtype, temperature: float):
    precision = 1e-12 if dtype == torch.float64 else 2e-6
    check(name, *make(dtype=dtype), temperature=temperature, rtol=precision, atol=precision)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient_is_the_slope(loss: Loss, temperature: float):
    """Central differences (f(x + h d) - f(x - h d)) / 2h along ten directions d, in float64 with h = 1e-5.

    torch's `gradcheck` walks a graph twice, which these losses refuse.
    """
    student, teacher, mask = make()
    total, _ = loss(student, teacher, mask, temperature=temperature)
    (grad,) = torch.autograd.grad(total, student)
    for seed in range(10):
        d = torch.randn(student.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        ends = [loss(student.detach() + h * d, teacher, mask, temperature=temperature)[0] for h in (1e-5, -1e-5)]
        assert (grad * d).sum().item() == pytest.approx(((ends[0] - ends[1]) / 2e-5).item(), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize(
    "mask",
    [
        torch.zeros(S, B),
        torch.ones(S, B),
        torch.arange(S * B).view(S, B) / 7,
        torch.arange(S * B).view(S, B) % 2 == 0,
        torch.arange(S * B).view(S, B) % 3,
    ],
    ids=["zeros", "ones", "fractions", "bool", "integers"],
)
def test_masks(name: str, mask: Tensor):
    student, teacher, _ = make()
    check(name, student, teacher, mask)


def test_nothing_counted_is_zero_and_not_nan(loss: Loss):
    student, teacher, mask = make()
    total, count = loss(student, teacher, torch.zeros_like(mask))
    total.backward()
    assert (total.item(), count.item()) == (0, 0)
    assert not student.grad.any()


@pytest.mark.parametrize("padding", [1e30, -1e30, math.inf, math.nan])
@pytest.mark.parametrize("chunked", [False, True])
def test_padded_vocabulary_never_counts(name: str, loss: Loss, padding: float, chunked: bool, chunk_rows):
    """Whatever stands in the columns past the vocabulary: same loss, same gradient, and zeros on the padding."""
    student, teacher, mask = make()
    with torch.no_grad():
        student[..., REAL:] = padding
        teacher[..., REAL:] = -padding
    if chunked:
        chunk_rows(2, V)
    check(name, student, teacher, mask, vocab_size=REAL, temperature=2.0)
    (grad,) = torch.autograd.grad(loss(student, teacher, mask, vocab_size=REAL)[0], student)
    assert not grad[..., REAL:].any()


def test_padding_counts_where_no_vocabulary_size_is_given(loss: Loss):
    student, teacher, mask = make()
    assert loss(student, teacher, mask)[0] != loss(student, teacher, mask, vocab_size=REAL)[0]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_bfloat16(name: str, loss: Loss, temperature: float):
    """Logits in bf16 are worked on in fp32: the value is good to fp32, the gradient to one rounding to bf16 (2^-8)."""
    student, teacher, mask = make(dtype=torch.bfloat16)
    total, count = loss(student, teacher, mask, temperature=temperature)
    (grad,) = torch.autograd.grad(total, student)
    want, want_grad = reference(name, student, teacher, mask, temperature)
    assert (total.dtype, count.dtype, grad.dtype) == (torch.float32, torch.float32, torch.bfloat16)
    assert total.item() == pytest.approx(want.item(), rel=2e-6)
    torch.testing.assert_close(grad.double(), want_grad, rtol=2**-8, atol=1e-7)


def test_gradient_is_scaled_at_full_precision(loss: Loss):
    """The trainer's factor, here 1/3, is applied in fp32 and not rounded to bf16 (0.33398) first."""
    student, teacher, mask = make(dtype=torch.bfloat16)
    (whole,) = torch.autograd.grad(loss(student, teacher, mask)[0], student)
    (third,) = torch.autograd.grad(loss(student, teacher, mask)[0] / 3, student)
    torch.testing.assert_close(third, (whole.float() / 3).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("student_dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("teacher_dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_student_and_teacher_of_different_precision(name: str, student_dtype: torch.dtype, teacher_dtype: torch.dtype):
    """The values are bf16's, exact in every dtype; the student's decides in which one the work is done."""
    student, teacher, mask = make(dtype=torch.bfloat16)
    student = student.detach().to(student_dtype).requires_grad_()
    precision = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-8}[student_dtype]
    check(name, student, teacher.to(teacher_dtype), mask.double(), rtol=precision, atol=min(precision, 1e-6))


@pytest.mark.parametrize("rows", [1, 2, 4, 7, 15])
def test_chunks_do_not_matter(name: str, rows: int, chunk_rows):
    """15 tokens as 15 chunks, as 8 (the last of one), 4, 3 and 1."""
    student, teacher, mask = make()
    chunk_rows(rows, V)
    check(name, student, teacher, mask, temperature=2.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_perfect_student_has_loss_zero_exactly(loss: Loss, dtype: torch.dtype, temperature: float):
    _, teacher, mask = make(dtype=dtype)
    student = teacher.clone().requires_grad_()
    total, _ = loss(student, teacher, mask, temperature=temperature)
    total.backward()
    assert total.item() == 0
    assert not student.grad.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_large_logits(name: str, loss: Loss, dtype: torch.dtype):
    """Logits of +-1e4: softmax is 0 or 1, nothing overflows and a log of 0 is never taken.

    KL is up to 2e4 nats; Jensen-Shannon stays below ln 2 for each token.
    """
    student, teacher, mask = make(dtype=dtype)
    with torch.no_grad():
        student.copy_(1e4 * student.sign())
        teacher.copy_(1e4 * teacher.sign())
        student[..., 0], teacher[..., 1] = 1e4, 1e4  # one word that is at the top in each
    total, count = loss(student, teacher, mask)
    if name.startswith("jensen-shannon"):
        assert 0 < total.item() < count.item() * math.log(2)
    else:
        assert total.item() > 1e4
    check(name, student, teacher, mask, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_batch_layout_of_megatron(name: str, loss: Loss):
    """Only `s` and `b` together number the tokens: the mask of `[s, b]` goes with its own logits, however they lie.

    Megatron's mask is `[b, s]` in memory and comes here transposed.
    """
    student, teacher, mask = make()
    turned = mask.transpose(0, 1).contiguous().transpose(0, 1)
    assert not turned.is_contiguous()
    check(name, student, teacher, turned)
    total = sum(
        loss(student[i : i + 1, j : j + 1], teacher[i : i + 1, j : j + 1], mask[i : i + 1, j : j + 1])[0]
        for i in range(S)
        for j in range(B)
    )
    torch.testing.assert_close(loss(student, teacher, mask)[0], total)


@pytest.mark.parametrize("layout", ["batch first", "vocabulary first", "strided", "expanded teacher"])
def test_non_contiguous_logits(name: str, layout: str):
    base, teacher, mask = make()
    base = base.detach()
    if layout == "batch first":
        student = base.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "vocabulary first":
        student = base.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    else:
        student = torch.stack([base, -base], dim=-1)[..., 0]
    if layout == "expanded teacher":
        teacher = teacher[:, :1].expand(S, B, V)
    else:
        teacher = teacher.transpose(0, 2).contiguous().transpose(0, 2)
    assert not student.is_contiguous()
    check(name, student.requires_grad_(), teacher, mask)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradient_flows_to_the_student_alone_and_inputs_stay(loss: Loss, dtype: torch.dtype):
    student, teacher, mask = make(dtype=dtype)
    teacher.requires_grad_()
    mask.requires_grad_()
    before = [x.detach().clone() for x in (student, teacher, mask)]
    loss(student, teacher, mask)[0].backward()
    assert teacher.grad is None
    assert mask.grad is None
    for x, y in zip((student, teacher, mask), before, strict=True):
        assert torch.equal(x.detach(), y)


def test_no_graph_without_a_student_to_train(loss: Loss):
    student, teacher, mask = make()
    total, count = loss(student.detach(), teacher.requires_grad_(), mask)
    assert not total.requires_grad
    assert not count.requires_grad
    with torch.no_grad():
        assert not loss(student, teacher, mask)[0].requires_grad


def test_a_graph_is_walked_once(loss: Loss):
    """The gradient is scaled in place: a second walk must not silently scale it again."""
    student, teacher, mask = make()
    total, _ = loss(student, teacher, mask)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        total.backward()


def test_micro_batches_of_unequal_masks_add_up(loss: Loss):
    """Sums and counts of 5, 0 and 2 counted tokens add up to those of the 7 together; a mean of means would not.

    Each micro-batch's gradient, over the global count, is its part of the whole batch's.
    """
    student, teacher, _ = make()
    mask = torch.zeros(S, B)
    mask[:, 0] = 1
    mask[1:3, 2] = 1
    total, count = loss(student, teacher, mask)
    (grad,) = torch.autograd.grad(total / count, student)
    sums, counts = [], []
    for i in range(B):
        x = student[:, i : i + 1].detach().requires_grad_()
        part, tokens = loss(x, teacher[:, i : i + 1], mask[:, i : i + 1])
        (part_grad,) = torch.autograd.grad(part / count, x)
        torch.testing.assert_close(part_grad, grad[:, i : i + 1])
        sums.append(part.item())
        counts.append(tokens.item())
    assert counts == [5, 0, 2]
    assert count.item() == 7
    assert sum(sums) == pytest.approx(total.item(), rel=1e-12)
    assert (sums[0] / 5 + sums[2] / 2) / 2 != pytest.approx(total.item() / 7, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_never_holds_all_logits_in_float32(loss: Loss, dtype: torch.dtype, chunk_rows, peak_bytes):
    """1024 tokens of 512 words in chunks of 8: beyond the gradient, a handful of chunks of 8 * 512 * 4 = 16 KiB.

    One fp32 copy of all logits would be 2 MiB, 128 chunks; allowed are ten.
    """
    tokens, words, rows = 1024, 512, 8
    student = torch.randn(tokens, 1, words).to(dtype).requires_grad_()
    teacher, mask = torch.randn(tokens, 1, words).to(dtype), torch.ones(tokens, 1)
    chunk_rows(rows, words)
    gradient = student.numel() * student.element_size()
    peak = peak_bytes(lambda: (loss(student, teacher, mask, temperature=2.0)[0] / tokens).backward())
    assert gradient < peak < gradient + 10 * 4 * rows * words


def test_shapes_that_do_not_go_together(loss: Loss):
    student, teacher, mask = make()
    with pytest.raises(ValueError, match=r"student logits \[5, 3, 24\] and teacher logits \[5, 3, 23\] must agree"):
        loss(student, teacher[..., 1:], mask)
    with pytest.raises(ValueError, match=r"mask is \[3, 5\], logits want \[5, 3\]"):
        loss(student, teacher, mask.T)


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_impossible_temperature(loss: Loss, temperature: float):
    with pytest.raises(ValueError, match=f"temperature={temperature}: must be positive and finite"):
        loss(*make(), temperature=temperature)


@pytest.mark.parametrize("vocab_size", [0, -1, 25])
def test_impossible_vocabulary(loss: Loss, vocab_size: int):
    with pytest.raises(ValueError, match=f"vocab_size={vocab_size}: the logits have 24 columns; allowed: 1 to 24"):
        loss(*make(), vocab_size=vocab_size)
