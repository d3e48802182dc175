"""Sparse KL against its definition in float64 and against forward KL; tails that are nearly nothing; the best k."""

import math

import pytest
import torch
from torch import Tensor

from bielik_nemo.losses import forward_kl, sparse_kl, top_k

S, B, V, REAL, K = 5, 3, 24, 19, 7  # positions, batch, columns, how many of them are vocabulary, ids per token


def top(teacher: Tensor, k: int, temperature: float = 1.0, vocab_size: int | None = None) -> tuple[Tensor, Tensor]:
    """Ids and log-probabilities `[s, b, k]` of the teacher's most likely words, as a cache would hold them."""
    log_probs, ids = (teacher[..., :vocab_size] / temperature).log_softmax(-1).topk(k)
    return ids, log_probs


def make(
    seed: int = 0, dtype: torch.dtype = torch.float64, k: int = K, temperature: float = 1.0, vocab_size: int = REAL
) -> list[Tensor]:
    """Student logits `[s, b, v]` asking for a gradient, ids and log-probabilities `[s, b, k]`, a 0/1 mask `[s, b]`."""
    random = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, S, B, V, dtype=torch.float64, generator=random)
    ids, log_probs = top(teacher, k, temperature, vocab_size)
    mask = (torch.rand(S, B, generator=random) > 0.4).float()
    return [student.to(dtype).requires_grad_(), ids, log_probs.to(dtype), mask]


def reference(
    student: Tensor,
    ids: Tensor,
    log_probs: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
    vocab_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition in float64 and its gradient by autograd, padding cut off first; the tail has a sum of its own."""
    x = student.detach().double().requires_grad_()
    log_q = (x[..., :vocab_size] / temperature).log_softmax(-1)
    log_p = log_probs.double()
    inside = torch.zeros_like(log_q, dtype=torch.bool).scatter(-1, ids.long(), True)
    log_tail = log_q.masked_fill(inside, -math.inf).logsumexp(-1)
    p_tail = (1 - log_p.exp().sum(-1)).clamp(min=0)
    each = (log_p.exp() * (log_p - log_q.gather(-1, ids.long()))).sum(-1)
    each = each + torch.xlogy(p_tail, p_tail) - p_tail * log_tail
    total = temperature**2 * (mask.double() * each).sum()
    return total.detach(), torch.autograd.grad(total, x)[0]


def check(inputs: list[Tensor], rtol: float = 1e-12, atol: float = 1e-12, **options) -> None:
    total, count = sparse_kl(*inputs, **options)
    (grad,) = torch.autograd.grad(total, inputs[0])
    want, want_grad = reference(*inputs, **options)
    assert grad.dtype == inputs[0].dtype
    assert count.item() == pytest.approx(inputs[-1].double().sum().item())
    torch.testing.assert_close(total.detach().double(), want, rtol=rtol, atol=atol)
    torch.testing.assert_close(grad.double(), want_grad, rtol=rtol, atol=atol)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_by_hand(temperature: float):
    """Two tokens, four words, k = 2; the student's logits are T log q.

    Token 1: ids 0 and 3 with p = (1/2, 1/4), the rest 1/4; q = (1/4, 1/4, 1/4, 1/4), the rest 1/2.
    KL = 1/2 ln 2 + 1/4 ln 1 + 1/4 ln 1/2 = 1/4 ln 2.
    Token 2: ids 2 and 1 with p = (1/2, 1/2), no rest; q = (1/8, 1/4, 1/2, 1/8). KL = 1/2 ln 1 + 1/2 ln 2 = 1/2 ln 2.
    Weights 1 and 1/2: T^2 1/2 ln 2 = 0.346574 T^2; count 1.5.
    Gradient T m (q - p) on the ids, T m (q - p_R q / q_R) on the rest. Token 1: T (-1/4, 1/8, 1/8, 0).
    Token 2: T/2 (1/8, -1/4, 0, 1/8).
    """
    q = torch.tensor([[[1 / 4, 1 / 4, 1 / 4, 1 / 4]], [[1 / 8, 1 / 4, 1 / 2, 1 / 8]]], dtype=torch.float64)
    student = (temperature * q.log()).requires_grad_()
    ids = torch.tensor([[[0, 3]], [[2, 1]]], dtype=torch.int32)
    log_probs = torch.tensor([[[1 / 2, 1 / 4]], [[1 / 2, 1 / 2]]], dtype=torch.float64).log()
    total, count = sparse_kl(student, ids, log_probs, torch.tensor([[1.0], [0.5]]), temperature=temperature)
    total.backward()
    assert total.item() == pytest.approx(temperature**2 * math.log(2) / 2, rel=1e-14)
    assert total.item() == pytest.approx({1.0: 0.346574, 2.0: 1.386294}[temperature], abs=1e-6)
    assert count.item() == 1.5
    want = torch.tensor([[[-1 / 4, 1 / 8, 1 / 8, 0]], [[1 / 16, -1 / 8, 0, 1 / 16]]], dtype=torch.float64)
    torch.testing.assert_close(student.grad, temperature * want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("rows", [1, 2, 7, 15])
def test_equals_the_definition_in_any_chunks(dtype: torch.dtype, temperature: float, rows: int, chunk_rows):
    chunk_rows(rows, V)
    precision = 1e-12 if dtype == torch.float64 else 2e-6
    check(make(dtype=dtype, temperature=temperature), temperature=temperature, rtol=precision, atol=precision)


def test_gradient_is_the_slope():
    """Central differences (f(x + h d) - f(x - h d)) / 2h along ten directions d, in float64 with h = 1e-5.

    torch's `gradcheck` walks a graph twice, which this loss refuses.
    """
    student, *rest = make()
    total, _ = sparse_kl(student, *rest, temperature=2.0)
    (grad,) = torch.autograd.grad(total, student)
    for seed in range(10):
        d = torch.randn(student.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        ends = [sparse_kl(student.detach() + h * d, *rest, temperature=2.0)[0] for h in (1e-5, -1e-5)]
        assert (grad * d).sum().item() == pytest.approx(((ends[0] - ends[1]) / 2e-5).item(), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_all_words_are_forward_kl(dtype: torch.dtype, temperature: float):
    """With k the vocabulary nothing is left for the tail; padded columns, here 1e30, are no tail either.

    bf16 logits, but the teacher's log-probabilities in fp32: rounded to bf16 they would be another teacher's.
    """
    random = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(2, S, B, V, dtype=torch.float64, generator=random)).to(dtype)
    with torch.no_grad():
        student[..., REAL:], teacher[..., REAL:] = 1e30, 1e30
    student.requires_grad_()
    mask = torch.arange(S * B).view(S, B) / 7
    wide = teacher if dtype == torch.float64 else teacher.float()
    ids, log_probs = top(wide, REAL, temperature, REAL)
    total, _ = sparse_kl(student, ids, log_probs, mask, temperature=temperature, vocab_size=REAL)
    (grad,) = torch.autograd.grad(total, student)
    want, _ = forward_kl(student, teacher, mask, temperature=temperature, vocab_size=REAL)
    (want_grad,) = torch.autograd.grad(want, student)
    precision = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(total, want, rtol=precision, atol=precision)
    torch.testing.assert_close(grad, want_grad, rtol=2**-7 if dtype == torch.bfloat16 else precision, atol=precision)


def test_more_words_come_nearer_to_forward_kl_from_below():
    """A finer partition never has the smaller KL; all but one word are already the whole."""
    random = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, S, B, V, dtype=torch.float64, generator=random)
    mask = torch.ones(S, B)
    values = [sparse_kl(student, *top(teacher, k), mask)[0].item() for k in (1, 2, 4, 8, 16, 23, 24)]
    assert values[:-1] == sorted(values[:-1])
    assert values[0] < 0.7 * values[-1]
    assert values[-2:] == pytest.approx([forward_kl(student, teacher, mask)[0].item()] * 2, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", [1, K, V])
def test_a_perfect_student_has_loss_zero(dtype: torch.dtype, k: int):
    teacher = (3 * torch.randn(S, B, V, generator=torch.Generator().manual_seed(0))).to(dtype)
    student = teacher.clone().requires_grad_()
    total, _ = sparse_kl(student, *top(teacher, k, 2.0), torch.ones(S, B), temperature=2.0)
    total.backward()
    precision = 1e-12 if dtype == torch.float64 else 1e-5
    assert total.item() == pytest.approx(0, abs=precision)
    assert student.grad.abs().max() < precision


def test_only_the_mass_of_the_tail_counts():
    """Words outside the k may share their mass anyhow: a student with the teacher's k words and another tail is at 0.

    Without the bucket, renormalised over the k, a student with all its mass elsewhere would be at 0 as well.
    """
    teacher = torch.tensor([[[0.4, 0.3, 0.1, 0.1, 0.1]]], dtype=torch.float64)
    other = torch.tensor([[[0.4, 0.3, 0.28, 0.01, 0.01]]], dtype=torch.float64).log().requires_grad_()
    elsewhere = torch.tensor([[[0.04, 0.03, 0.31, 0.31, 0.31]]], dtype=torch.float64).log()
    inputs = (*top(teacher.log(), 2), torch.ones(1, 1))
    total, _ = sparse_kl(other, *inputs)
    total.backward()
    assert total.item() == pytest.approx(0, abs=1e-15)
    assert other.grad.abs().max() < 1e-15
    want = 0.7 * math.log(10) + 0.3 * math.log(0.3 / 0.93)
    assert sparse_kl(elsewhere, *inputs)[0].item() == pytest.approx(want, rel=1e-12)


# Tails of nearly nothing


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_student_without_a_tail_is_driven_towards_one(dtype: torch.dtype):
    """q = softmax(a, 0, 0) with a = 60 or 200: q_R = 2 exp(-a), and 1 - q_0 is 0 in fp64, exp(-200) in fp32.

    The teacher has p = (3/4, rest 1/4): L = 3/4 ln 3/4 + 1/4 (ln 1/4 - ln 2 + a), and the gradient is
    (q_0 - p_0, -p_R / 2, -p_R / 2) = (1/4, -1/8, -1/8), not zero.
    """
    for a in (60.0, 200.0):
        student = torch.tensor([[[a, 0.0, 0.0]]], dtype=dtype, requires_grad=True)
        log_p = torch.tensor([[[0.75]]], dtype=dtype).log()
        total, _ = sparse_kl(student, torch.tensor([[[0]]]), log_p, torch.ones(1, 1))
        total.backward()
        want = 0.75 * math.log(0.75) + 0.25 * (math.log(0.125) + a)
        assert total.item() == pytest.approx(want, rel=1e-6 if dtype == torch.float32 else 1e-14)
        torch.testing.assert_close(student.grad, torch.tensor([[[1 / 4, -1 / 8, -1 / 8]]], dtype=dtype))


def test_a_teacher_with_nearly_no_tail():
    """p_0 = 1 - 1e-9 of log p_0 = -1e-9, which fp32 holds although it does not hold p_0; q = (1/2, 1/4, 1/4).

    L = ln 2 + 1e-9 ln(1e-9) + O(1e-9) = ln 2 - 2.07e-8, and with no tail at all, log p_0 = 0, it is ln 2.
    """
    student = torch.tensor([[[0.5, 0.25, 0.25]]], dtype=torch.float64).log()
    id_, one = torch.tensor([[[0]]]), torch.ones(1, 1)
    small, _ = sparse_kl(student, id_, torch.tensor([[[-1e-9]]]), one)
    none, _ = sparse_kl(student, id_, torch.tensor([[[0.0]]]), one)
    assert none.item() == pytest.approx(math.log(2), rel=1e-15)
    assert (small - none).item() == pytest.approx(1e-9 * (math.log(1e-9) - 1), rel=1e-2, abs=1e-9)
    assert small < none


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_that_rounding_takes_over_one_have_no_tail(dtype: torch.dtype):
    """log p of 19 words rounded to bf16 sums to up to 1.01: finite, and the gradient that of the formula so given."""
    student, ids, log_probs, mask = make(dtype=dtype, k=REAL)
    log_probs = (log_probs.double() + 0.01).to(dtype)
    assert (log_probs.double().exp().sum(-1) > 1).all()
    rtol = 2e-6 if dtype == torch.float32 else 2**-8
    check([student, ids, log_probs, mask], rtol=rtol, atol=2e-6)


def test_a_word_of_probability_zero_is_no_word_of_the_tail():
    """Log p = -inf: 0 log 0 = 0, and what the student gives the word is in no bucket that the teacher fills.

    p = (3/4, 0, rest 1/4), q = (1/2, 1/4, 1/4): 3/4 ln 3/2 + 1/4 ln 1; gradient (-1/4, 1/4, 0).
    """
    student = torch.tensor([[[0.5, 0.25, 0.25]]], dtype=torch.float64).log().requires_grad_()
    log_p = torch.tensor([[[0.75, 0.0]]], dtype=torch.float64).log()
    total, _ = sparse_kl(student, torch.tensor([[[0, 1]]]), log_p, torch.ones(1, 1))
    total.backward()
    assert total.item() == pytest.approx(0.75 * math.log(1.5), rel=1e-14)
    torch.testing.assert_close(student.grad, torch.tensor([[[-1 / 4, 1 / 4, 0]]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_large_logits(dtype: torch.dtype):
    """Logits of +-1e4: the tail, or the top, has probability exp(-2e4); up to 2e4 nats, and nothing overflows."""
    student, ids, log_probs, mask = make(dtype=dtype)
    with torch.no_grad():
        student.copy_(1e4 * student.sign())
    check([student, ids, log_probs, mask], vocab_size=REAL, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
    with torch.no_grad():
        student.fill_(-1e4).scatter_(-1, ids, 1e4)  # all on the top: the tail is at the bottom
    total, _ = sparse_kl(student, ids, log_probs, torch.ones(S, B), vocab_size=REAL)
    assert 0 < total.item() < math.inf
    check([student, ids, log_probs, mask], vocab_size=REAL, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


# What it shares with the other losses


@pytest.mark.parametrize("padding", [1e30, -1e30, math.inf, math.nan])
def test_padded_vocabulary_never_counts(padding: float):
    """Whatever stands in the columns past the vocabulary: same loss, same gradient, and zeros on the padding."""
    inputs = make()
    with torch.no_grad():
        inputs[0][..., REAL:] = padding
    check(inputs, vocab_size=REAL)
    (grad,) = torch.autograd.grad(sparse_kl(*inputs, vocab_size=REAL)[0], inputs[0])
    assert not grad[..., REAL:].any()


@pytest.mark.parametrize("log_probs_dtype", [torch.float32, torch.bfloat16])
def test_bfloat16(log_probs_dtype: torch.dtype):
    """Logits in bf16 are worked on in fp32: the value is good to fp32, the gradient to one rounding to bf16 (2^-8)."""
    student, ids, log_probs, mask = make(dtype=torch.bfloat16)
    inputs = [student, ids, log_probs.to(log_probs_dtype), mask]
    total, count = sparse_kl(*inputs, temperature=2.0)
    (grad,) = torch.autograd.grad(total, student)
    want, want_grad = reference(*inputs, temperature=2.0)
    assert (total.dtype, count.dtype, grad.dtype) == (torch.float32, torch.float32, torch.bfloat16)
    assert total.item() == pytest.approx(want.item(), rel=2e-6)
    torch.testing.assert_close(grad.double(), want_grad, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(
    "mask",
    [torch.zeros(S, B), torch.ones(S, B), torch.arange(S * B).view(S, B) / 7, torch.arange(S * B).view(S, B) % 2 == 0],
    ids=["zeros", "ones", "fractions", "bool"],
)
def test_masks(mask: Tensor):
    check([*make()[:-1], mask])


def test_batch_layout_of_megatron_and_inputs_stay():
    """Megatron's tensors are `[b, s, ...]` in memory and come here transposed; none is changed."""
    inputs = [x.detach().transpose(0, 1).contiguous().transpose(0, 1) for x in make(dtype=torch.float32)]
    assert not any(x.is_contiguous() for x in inputs)
    inputs[0].requires_grad_()
    before = [x.detach().clone() for x in inputs]
    check(inputs, rtol=2e-6, atol=2e-6)
    sparse_kl(*inputs)[0].backward()
    assert all(torch.equal(x.detach(), y) for x, y in zip(inputs, before, strict=True))


def test_gradient_flows_to_the_student_alone_and_once():
    student, ids, log_probs, mask = make()
    log_probs.requires_grad_()
    total, _ = sparse_kl(student, ids, log_probs, mask)
    total.backward(retain_graph=True)
    assert log_probs.grad is None
    with pytest.raises(RuntimeError):
        total.backward()
    assert not sparse_kl(student.detach(), ids, log_probs, mask)[0].requires_grad


def test_micro_batches_of_unequal_masks_add_up():
    """Sums and gradients of 5, 0 and 2 counted tokens add up to those of the 7 together."""
    inputs = make()
    inputs[-1] = torch.zeros(S, B)
    inputs[-1][:, 0] = 1
    inputs[-1][1:3, 2] = 1
    total, count = sparse_kl(*inputs)
    (grad,) = torch.autograd.grad(total / count, inputs[0])
    sums, counts = [], []
    for i in range(B):
        x, *rest = (each[:, i : i + 1] for each in inputs)
        x = x.detach().requires_grad_()
        part, tokens = sparse_kl(x, *rest)
        torch.testing.assert_close(torch.autograd.grad(part / count, x)[0], grad[:, i : i + 1])
        sums.append(part.item())
        counts.append(tokens.item())
    assert counts == [5, 0, 2]
    assert sum(sums) == pytest.approx(total.item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_never_holds_all_logits_in_float32(dtype: torch.dtype, chunk_rows, peak_bytes):
    """1024 tokens of 512 words in chunks of 8: beyond the gradient, a handful of chunks of 8 * 512 * 4 = 16 KiB.

    One fp32 copy of all logits would be 2 MiB, 128 chunks; allowed are ten.
    """
    tokens, words, rows = 1024, 512, 8
    student = torch.randn(tokens, 1, words).to(dtype).requires_grad_()
    ids, log_probs = top(torch.randn(tokens, 1, words), K)
    mask = torch.ones(tokens, 1)
    chunk_rows(rows, words)
    gradient = student.numel() * student.element_size()
    peak = peak_bytes(lambda: (sparse_kl(student, ids, log_probs, mask)[0] / tokens).backward())
    assert gradient < peak < gradient + 10 * 4 * rows * words


def test_what_does_not_go_together():
    student, ids, log_probs, mask = make()
    with pytest.raises(ValueError, match=r"ids are \[5, 3, 7\], log_probs \[5, 3, 6\]: they must agree"):
        sparse_kl(student, ids, log_probs[..., :6], mask)
    with pytest.raises(ValueError, match=r"ids are \[3, 5, 7\], logits want \[5, 3\] and at least one id for each"):
        sparse_kl(student, ids.transpose(0, 1), log_probs.transpose(0, 1), mask)
    with pytest.raises(ValueError, match=r"ids are \[5, 3, 0\], logits want"):
        sparse_kl(student, ids[..., :0], log_probs[..., :0], mask)
    with pytest.raises(ValueError, match=r"mask is \[5, 1\], logits want \[5, 3\]"):
        sparse_kl(student, ids, log_probs, mask[:, :1])
    with pytest.raises(ValueError, match="temperature=0: must be positive and finite"):
        sparse_kl(student, ids, log_probs, mask, temperature=0)
    with pytest.raises(ValueError, match="vocab_size=25: the logits have 24 columns; allowed: 1 to 24"):
        sparse_kl(student, ids, log_probs, mask, vocab_size=25)


# The most likely ids


def test_top_k_by_hand():
    """p = (1/8, 1/2, 1/8, 1/4): the best two are 1 and 3. At T = 2 square roots take their place:

    (0.35355, 0.70711, 0.35355, 0.5) out of 1.91421, 0.36940 and 0.26120.
    """
    logits = torch.tensor([[1 / 8, 1 / 2, 1 / 8, 1 / 4]], dtype=torch.float64).log() + 5
    ids, log_probs = top_k(logits, 2)
    assert ids.tolist() == [[1, 3]]
    assert log_probs.exp().tolist() == [pytest.approx([1 / 2, 1 / 4])]
    ids, log_probs = top_k(logits, 2, temperature=2.0)
    assert ids.tolist() == [[1, 3]]
    assert log_probs.exp().tolist() == [pytest.approx([0.36940, 0.26120], abs=1e-5)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, K, REAL])
def test_top_k_equals_the_definition_without_padding_and_in_any_chunks(k: int, dtype, temperature: float, chunk_rows):
    """Distinct logits, so that there is one answer; a large number stands in the padding."""
    random = torch.Generator().manual_seed(0)
    order = torch.rand(12, V, generator=random).argsort(-1)
    logits = (order - V / 2).to(dtype)
    logits[:, REAL:] = 1e30
    before = logits.clone()
    want = (logits[:, :REAL].double() / temperature).log_softmax(-1).topk(k)
    for rows in (12, 5):
        chunk_rows(rows, V)
        ids, log_probs = top_k(logits, k, temperature=temperature, vocab_size=REAL)
        assert (ids.dtype, log_probs.dtype) == (torch.int64, torch.float32)
        assert torch.equal(ids, want.indices)
        torch.testing.assert_close(log_probs.double(), want.values, rtol=2e-6, atol=2e-6)
    assert torch.equal(logits, before)


def test_top_k_of_equal_logits_are_the_first_ids():
    """As in bf16, where logits near 20 differ by 1/8 at least: order by logit, then by id."""
    logits = torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0, -3.0, 2.0]]).bfloat16()
    for k in range(1, 8):
        assert top_k(logits, k)[0].tolist() == [[1, 3, 6, 0, 2, 4, 5][:k]]


def test_top_k_of_what_is_not_finite_is_not_finite():
    logits = torch.zeros(2, 4)
    logits[0, 1], logits[1, 1] = math.nan, math.inf
    assert not top_k(logits, 2)[1].isfinite().all(-1).any()


def test_top_k_that_cannot_be():
    logits = torch.zeros(2, V)
    for k in (0, REAL + 1):
        with pytest.raises(ValueError, match=f"k={k}: allowed: 1 to 19, the vocabulary"):
            top_k(logits, k, vocab_size=REAL)
    with pytest.raises(ValueError, match=r"temperature=0: must be positive and finite"):
        top_k(logits, 2, temperature=0)
