"""Cross-entropy against torch's own log_softmax in float64, by value and by gradient."""

import math

import pytest
import torch
from torch import Tensor

from bielik_nemo.losses import cross_entropy
from bielik_nemo.losses.cross_entropy import token_cross_entropy

S, B, V, REAL = 5, 3, 24, 19  # positions, batch, columns, and how many of the columns are vocabulary


def make(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Logits `[s, b, v]` that ask for a gradient, labels and a 0/1 mask `[s, b]`."""
    random = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(S, B, V, dtype=torch.float64, generator=random)).to(dtype)
    labels = torch.randint(REAL, (S, B), generator=random)
    mask = (torch.rand(S, B, generator=random) > 0.4).float()
    return logits.requires_grad_(), labels, mask


def reference(logits: Tensor, labels: Tensor, mask: Tensor, vocab_size: int | None = None) -> tuple[Tensor, Tensor]:
    """The definition in float64: -sum_i m_i log softmax(z_i)[label_i], and its gradient, padding cut off first."""
    x = logits.detach().double().requires_grad_()
    log_q = x[..., :vocab_size].log_softmax(-1)
    total = -(mask.double() * log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1)).sum()
    return total.detach(), torch.autograd.grad(total, x)[0]


def check(logits: Tensor, labels: Tensor, mask: Tensor, rtol: float = 1e-12, atol: float = 1e-12, **options) -> None:
    total, count = cross_entropy(logits, labels, mask, **options)
    (grad,) = torch.autograd.grad(total, logits)
    want, want_grad = reference(logits, labels, mask, **options)
    assert grad.dtype == logits.dtype
    assert count.item() == pytest.approx(mask.double().sum().item())
    torch.testing.assert_close(total.detach().double(), want, rtol=rtol, atol=atol)
    torch.testing.assert_close(grad.double(), want_grad, rtol=rtol, atol=atol)


def test_by_hand():
    """Two tokens, three words, logits log q.

    Token 1: q = (1/4, 1/4, 1/2), label 2: ln 2. Token 2: q = (1/2, 1/4, 1/4), label 1: ln 4 = 2 ln 2.
    Weights 1 and 1/2: sum ln 2 + 1/2 * 2 ln 2 = 2 ln 2 = 1.386294, count 1.5.
    Gradient m (q - label): (1/4, 1/4, -1/2) and 1/2 (1/2, -3/4, 1/4).
    """
    q = torch.tensor([[[1 / 4, 1 / 4, 1 / 2]], [[1 / 2, 1 / 4, 1 / 4]]], dtype=torch.float64)
    logits, labels = q.log().requires_grad_(), torch.tensor([[2], [1]])
    total, count = cross_entropy(logits, labels, torch.tensor([[1.0], [0.5]]))
    total.backward()
    assert total.item() == pytest.approx(1.386294, abs=1e-6)
    assert count.item() == 1.5
    want = torch.tensor([[[1 / 4, 1 / 4, -1 / 2]], [[1 / 4, -3 / 8, 1 / 8]]], dtype=torch.float64)
    torch.testing.assert_close(logits.grad, want)
    each = token_cross_entropy(logits, labels)
    torch.testing.assert_close(each, torch.tensor([[math.log(2)], [math.log(4)]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_definition(dtype: torch.dtype):
    precision = 1e-12 if dtype == torch.float64 else 2e-6
    check(*make(dtype=dtype), rtol=precision, atol=precision)


def test_gradient_is_the_slope():
    """Central differences (f(x + h d) - f(x - h d)) / 2h along ten directions d, in float64 with h = 1e-5."""
    logits, labels, mask = make()
    (grad,) = torch.autograd.grad(cross_entropy(logits, labels, mask)[0], logits)
    for seed in range(10):
        d = torch.randn(logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        up, down = (cross_entropy(logits.detach() + h * d, labels, mask)[0] for h in (1e-5, -1e-5))
        assert (grad * d).sum().item() == pytest.approx(((up - down) / 2e-5).item(), rel=1e-7, abs=1e-7)


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
def test_masks(mask: Tensor):
    logits, labels, _ = make()
    check(logits, labels, mask)


@pytest.mark.parametrize("label", [-100, -1, REAL, V, 10**6])
def test_labels_outside_the_vocabulary_are_harmless_where_masked_out(label: int):
    """An ignored position may carry any label; its row takes no part and no index leaves the logits."""
    logits, labels, mask = make()
    mask[1, 2] = 0
    total, _ = cross_entropy(logits, labels, mask, vocab_size=REAL)
    labels[1, 2] = label
    odd, _ = cross_entropy(logits, labels, mask, vocab_size=REAL)
    (grad,) = torch.autograd.grad(odd, logits)
    assert torch.equal(odd, total)
    assert grad.isfinite().all()
    assert not grad[1, 2].any()


@pytest.mark.parametrize("padding", [1e30, -1e30, math.inf, math.nan])
@pytest.mark.parametrize("chunked", [False, True])
def test_padded_vocabulary_never_counts(padding: float, chunked: bool, chunk_rows):
    """Whatever stands in the columns past the vocabulary: same loss, same gradient, and zeros on the padding."""
    logits, labels, mask = make()
    with torch.no_grad():
        logits[..., REAL:] = padding
    if chunked:
        chunk_rows(2, V)
    check(logits, labels, mask, vocab_size=REAL)
    (grad,) = torch.autograd.grad(cross_entropy(logits, labels, mask, vocab_size=REAL)[0], logits)
    assert not grad[..., REAL:].any()


def test_bfloat16():
    """Logits in bf16 are worked on in fp32: the value is good to fp32, the gradient to two roundings to bf16.

    The first rounds q - label, the second the product with the mask; here with weights that are no power of two.
    """
    logits, labels, mask = make(dtype=torch.bfloat16)
    mask = mask / 3
    total, count = cross_entropy(logits, labels, mask)
    (grad,) = torch.autograd.grad(total, logits)
    want, want_grad = reference(logits, labels, mask)
    assert (total.dtype, count.dtype, grad.dtype) == (torch.float32, torch.float32, torch.bfloat16)
    assert total.item() == pytest.approx(want.item(), rel=2e-6)
    torch.testing.assert_close(grad.double(), want_grad, rtol=2**-7, atol=1e-7)


@pytest.mark.parametrize("rows", [1, 2, 4, 7, 15])
def test_chunks_do_not_matter(rows: int, chunk_rows):
    """15 tokens as 15 chunks, as 8 (the last of one), 4, 3 and 1."""
    logits, labels, mask = make()
    chunk_rows(rows, V)
    check(logits, labels, mask)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_large_logits(dtype: torch.dtype):
    """Logits of +-1e4: a label at the bottom costs 2e4 nats, one alone at the top costs nothing."""
    logits, labels, mask = make(dtype=dtype)
    with torch.no_grad():
        logits.fill_(-1e4)
        logits[..., 0] = 1e4
    labels.fill_(0)
    assert cross_entropy(logits, labels, mask)[0].item() == 0
    labels[2, 1] = 5
    mask[2, 1] = 1
    assert cross_entropy(logits, labels, mask)[0].item() == pytest.approx(2e4, rel=2**-7)
    check(logits, labels, mask, rtol=2**-7 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", ["batch first", "vocabulary first", "strided", "expanded"])
def test_non_contiguous_inputs(layout: str):
    """Megatron's labels and mask are `[b, s]` in memory and come here transposed."""
    base, labels, mask = make()
    base = base.detach()
    if layout == "batch first":
        logits = base.transpose(0, 1).contiguous().transpose(0, 1)
        labels, mask = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (labels, mask))
    elif layout == "vocabulary first":
        logits = base.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    elif layout == "strided":
        logits = torch.stack([base, -base], dim=-1)[..., 0]
    else:
        logits = base[:, :1].expand(S, B, V)
    assert not logits.is_contiguous()
    check(logits.requires_grad_(), labels, mask)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_inputs_stay(dtype: torch.dtype):
    inputs = make(dtype=dtype)
    before = [x.detach().clone() for x in inputs]
    cross_entropy(*inputs)[0].backward()
    for x, y in zip(inputs, before, strict=True):
        assert torch.equal(x.detach(), y)


def test_no_graph_without_logits_to_train():
    logits, labels, mask = make()
    assert not cross_entropy(logits.detach(), labels, mask)[0].requires_grad
    with torch.no_grad():
        assert not cross_entropy(logits, labels, mask)[0].requires_grad


def test_a_graph_is_walked_once():
    """The gradient is scaled in place: a second walk must not silently scale it again."""
    total, _ = cross_entropy(*make())
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        total.backward()


def test_micro_batches_of_unequal_masks_add_up():
    """Sums and counts of 5, 0 and 2 counted tokens add up to those of the 7 together; a mean of means would not."""
    logits, labels, _ = make()
    mask = torch.zeros(S, B)
    mask[:, 0] = 1
    mask[1:3, 2] = 1
    total, count = cross_entropy(logits, labels, mask)
    (grad,) = torch.autograd.grad(total / count, logits)
    sums, counts = [], []
    for i in range(B):
        x = logits[:, i : i + 1].detach().requires_grad_()
        part, tokens = cross_entropy(x, labels[:, i : i + 1], mask[:, i : i + 1])
        (part_grad,) = torch.autograd.grad(part / count, x)
        torch.testing.assert_close(part_grad, grad[:, i : i + 1])
        sums.append(part.item())
        counts.append(tokens.item())
    assert counts == [5, 0, 2]
    assert count.item() == 7
    assert sum(sums) == pytest.approx(total.item(), rel=1e-12)
    assert (sums[0] / 5 + sums[2] / 2) / 2 != pytest.approx(total.item() / 7, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_never_holds_all_logits_in_float32(dtype: torch.dtype, chunk_rows, peak_bytes):
    """1024 tokens of 512 words in chunks of 8: beyond the gradient, a handful of chunks of 8 * 512 * 4 = 16 KiB.

    One fp32 copy of all logits would be 2 MiB, 128 chunks; allowed are ten and the few numbers per token.
    """
    tokens, words, rows = 1024, 512, 8
    logits = torch.randn(tokens, 1, words).to(dtype).requires_grad_()
    labels, mask = torch.randint(words, (tokens, 1)), torch.ones(tokens, 1)
    chunk_rows(rows, words)
    gradient = logits.numel() * logits.element_size()
    peak = peak_bytes(lambda: (cross_entropy(logits, labels, mask)[0] / tokens).backward())
    assert gradient < peak < gradient + 10 * 4 * rows * words


def test_shapes_that_do_not_go_together():
    """Labels or a mask of `[b, s]` would pair tokens with others' labels; a mask of one column would be broadcast."""
    logits, labels, mask = make()
    with pytest.raises(ValueError, match=r"labels are \[3, 5\], logits want \[5, 3\]"):
        cross_entropy(logits, labels.T, mask.T)
    with pytest.raises(ValueError, match=r"mask is \[5, 1\], labels are \[5, 3\]"):
        cross_entropy(logits, labels, mask[:, :1])


@pytest.mark.parametrize("vocab_size", [0, -1, 25])
def test_impossible_vocabulary(vocab_size: int):
    with pytest.raises(ValueError, match=f"vocab_size={vocab_size}: the logits have 24 columns; allowed: 1 to 24"):
        cross_entropy(*make(), vocab_size=vocab_size)
