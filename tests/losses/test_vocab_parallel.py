"""What losses share, and losses over a sharded vocabulary: the same value on every rank, the same gradient gathered.

All layouts run in one launch of this file under torchrun, three gloo processes. The vocabulary of 263 is padded to 384
columns: two ranks hold 192 (192 and 71 real), three hold 128 (128, 128 and 7). With 250 words the third of three has no
real column at all. Padding holds 1e30, which would rule any softmax that saw it.
"""

import itertools
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import ProcessGroup

from bielik_nemo.losses import (
    cross_entropy,
    draw,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    sampled_kl,
    sparse_kl,
    top_k,
    vocab_parallel,
)

S, B, COLUMNS = 4, 3, 384
LAYOUTS = [(2, 263), (3, 263), (3, 250)]  # tensor-parallel ranks, vocabulary
DIVERGENCES = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "jensen_shannon": jensen_shannon}
LOSSES = [*DIVERGENCES, "cross_entropy", "sampled_kl", "sparse_kl"]
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
PRECISION = {"float64": 1e-12, "float32": 1e-6, "bfloat16": 1e-6}
CHUNK_ROWS = [1, 5, 12]  # of the 12 tokens, on every rank
CASES = list(itertools.product(LAYOUTS, LOSSES, DTYPES, CHUNK_ROWS))


def result(loss: str, vocab_size: int, dtype: str, part: slice, group: ProcessGroup | None) -> dict[str, Tensor]:
    """Value, count and gradient of one loss on columns `part` of logits that depend on nothing but the vocabulary."""
    random = torch.Generator().manual_seed(vocab_size)
    logits = 3 * torch.randn(2, S, B, COLUMNS, dtype=torch.float64, generator=random)
    logits -= 200  # so that a rank without columns must not offer 0 as its largest: exp(-200) is 0 in fp32
    logits[..., vocab_size:] = 1e30
    labels = torch.randint(vocab_size, (S, B), generator=random)
    labels[0] = torch.tensor([0, 191, vocab_size - 1])  # ends of shards
    mask = torch.tensor([1, 1, 1, 0, 0.5, 1, 1, 1, 0, 1, 0.25, 1]).view(S, B)
    student, teacher = logits[..., part].to(DTYPES[dtype])
    student.requires_grad_()
    shared = {"vocab_size": vocab_size, "tp_group": group}
    drawn = {}
    if loss == "sampled_kl":
        uniforms = torch.rand(S * B, 20, dtype=torch.float64, generator=random)
        uniforms[0, :3] = torch.tensor([0.0, 0.5, 1 - 2**-53])
        drawn["ids"], drawn["surprisal"] = draw(teacher.flatten(0, 1), uniforms, **shared)
        total, count = sampled_kl(student, drawn["ids"].view(S, B, -1), drawn["surprisal"].view(S, B), mask, **shared)
    elif loss == "sparse_kl":
        drawn["ids"], drawn["log_probs"] = top_k(teacher.flatten(0, 1), 20, temperature=2.0, **shared)
        log_probs, ids = (logits[1, ..., :vocab_size].to(student.dtype) / 2).log_softmax(-1).topk(20)
        total, count = sparse_kl(student, ids, log_probs, mask, temperature=2.0, **shared)
    elif loss in DIVERGENCES:
        total, count = DIVERGENCES[loss](student, teacher, mask, temperature=2.0, **shared)
    else:
        total, count = cross_entropy(student, labels, mask, **shared)
    (total / 3).backward()
    columns = vocab_parallel.real_columns(student, vocab_size, group)
    found = {"total": total.detach(), "count": count, "grad": student.grad, "columns": torch.tensor(columns)}
    return found | drawn


def use_chunks_of(rows: int, width: int) -> None:
    vocab_parallel.CHUNK_BYTES["cpu"] = 4 * rows * width


def on_rank(directory: Path) -> None:
    """Every case on this rank, written to one file; a rank outside a layout's group leaves that layout out."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))  # ranks out of step: fail, do not hang
    rank, results = torch.distributed.get_rank(), {}
    groups = {tp: torch.distributed.new_group(list(range(tp))) for tp in (2, 3)}
    for case in CASES:
        (tp, vocab_size), loss, dtype, rows = case
        if rank >= tp:
            continue
        width = COLUMNS // tp
        use_chunks_of(rows, width)
        values = result(loss, vocab_size, dtype, slice(rank * width, (rank + 1) * width), groups[tp])
        results |= {f"{case}.{name}": value for name, value in values.items()}
    save_file(results, directory / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(launched) -> list[dict[str, Tensor]]:
    """Results of each of the three ranks."""
    return launched(__file__, 3)


def check_gradient(shards: list[Tensor], one: Tensor, vocab_size: int, dtype: str) -> None:
    """The shards side by side are the gradient of one rank, and zero on the padding."""
    grad = torch.cat(shards, dim=-1)
    assert not grad[..., vocab_size:].any()
    assert grad[..., :vocab_size].any()
    rtol = 2**-7 if dtype == "bfloat16" else PRECISION[dtype]
    torch.testing.assert_close(grad, one, rtol=rtol, atol=PRECISION[dtype])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tensor_parallel_equals_one_rank(ranks: list[dict[str, Tensor]], case: tuple, chunk_rows):
    """Equal up to the order of additions: 1e-12 in fp64, 1e-6 in fp32; in bf16 one rounding (2^-8) of the gradient."""
    (tp, vocab_size), loss, dtype, _ = case
    chunk_rows(S * B, COLUMNS)
    one = result(loss, vocab_size, dtype, slice(None), None)
    shards = [{name: rank[f"{case}.{name}"] for name in one} for rank in ranks[:tp]]
    for shard in shards:
        assert torch.equal(shard["total"], shards[0]["total"])
        assert torch.equal(shard["count"], one["count"])
        for name in {"ids", "surprisal", "log_probs"} & one.keys():
            torch.testing.assert_close(shard[name], one[name], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(shards[0]["total"], one["total"], rtol=PRECISION[dtype], atol=PRECISION[dtype])
    check_gradient([shard["grad"] for shard in shards], one["grad"], vocab_size, dtype)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_scaled_by_the_number_of_ranks_would_be_seen(ranks: list[dict[str, Tensor]], loss: str, dtype: str):
    """The fault of a sum over ranks that is differentiated on each: every shard is tp times too large."""
    tp, vocab_size = LAYOUTS[0]
    one = result(loss, vocab_size, dtype, slice(None), None)["grad"]
    shards = [rank[f"{((tp, vocab_size), loss, dtype, CHUNK_ROWS[0])}.grad"] for rank in ranks[:tp]]
    check_gradient(shards, one, vocab_size, dtype)
    with pytest.raises(AssertionError, match="not close"):
        check_gradient([tp * shard for shard in shards], one, vocab_size, dtype)


def test_layouts_hold_the_columns_that_they_are_meant_to(ranks: list[dict[str, Tensor]]):
    """263 words over 2 x 192 are 192 + 71, over 3 x 128 are 128 + 128 + 7; 250 words are 128 + 122 + 0."""
    real = {
        (tp, words): [rank[f"{((tp, words), *CASES[0][1:])}.columns"].item() for rank in ranks[:tp]]
        for tp, words in LAYOUTS
    }
    assert real == {(2, 263): [192, 71], (3, 263): [128, 128, 7], (3, 250): [128, 122, 0]}


@pytest.mark.parametrize(("vocab_size", "columns"), [(None, 8), (8, 8), (7, 7), (1, 1)])
def test_real_columns_of_one_rank(vocab_size: int | None, columns: int):
    assert vocab_parallel.real_columns(torch.zeros(2, 3, 8), vocab_size, None) == columns


def test_own_columns_of_one_rank():
    """Five of six columns are words; other ids, -100 for one, are not this rank's, and their index stays in reach."""
    ids = torch.tensor([[0, 4], [5, 6], [-1, -100]], dtype=torch.int16)
    index, mine = vocab_parallel.own_columns(ids, torch.zeros(3, 6), 5, None)
    assert mine.tolist() == [[True, True], [False, False], [False, False]]
    assert index[0].tolist() == [0, 4]
    assert index.dtype == torch.int64
    assert 0 <= index.min() <= index.max() < 5
    index, mine = vocab_parallel.own_columns(ids, torch.zeros(3, 6), 0, None)
    assert not index.any()
    assert not mine.any()


def test_a_sum_over_chunks_and_its_gradient(chunk_rows):
    """Sum of x^2 over three of five columns, over 4, of 12 rows, five at a time: gradient x/2 there, 0 elsewhere."""
    x = torch.arange(60, dtype=torch.float32).view(3, 4, 5).requires_grad_()
    chunk_rows(5, 5)
    seen = []

    def term(part: slice, rows: Tensor, grad: Tensor | None) -> Tensor:
        seen.append((part, rows.shape))
        if grad is not None:
            grad.copy_(2 * rows)
        return (rows**2).sum()

    total = vocab_parallel.sum_over_chunks(x, 3, term)
    (total / 4).backward()
    assert total.item() == (x[..., :3] ** 2).sum().item()
    torch.testing.assert_close(x.grad[..., :3], x[..., :3].detach() / 2)
    assert not x.grad[..., 3:].any()
    assert seen == [(slice(0, 5), (5, 3)), (slice(5, 10), (5, 3)), (slice(10, 12), (2, 3))]
    assert not vocab_parallel.sum_over_chunks(x.detach(), 3, term).requires_grad


def test_chunks_cover_every_row_once(monkeypatch: pytest.MonkeyPatch):
    """100 bytes hold 5 rows of 5 fp32 numbers: 12 rows are 5 + 5 + 2. A row that does not fit is a chunk of its own."""
    monkeypatch.setitem(vocab_parallel.CHUNK_BYTES, "cpu", 100)
    assert list(vocab_parallel.chunks(torch.zeros(12, 5))) == [slice(0, 5), slice(5, 10), slice(10, 12)]
    assert list(vocab_parallel.chunks(torch.zeros(2, 26))) == [slice(0, 1), slice(1, 2)]
    assert list(vocab_parallel.chunks(torch.zeros(0, 5))) == []


def test_upcast_keeps_double():
    for dtype, worked_in in [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ]:
        assert vocab_parallel.upcast(torch.zeros(1, dtype=dtype)).dtype == worked_in


def test_rows_are_scaled_in_place_and_at_full_precision(chunk_rows):
    """bf16 steps by 1/4 between 32 and 64.

    So 97 * 0.3333 = 32.33 -> 32.25; with the factor rounded to bf16's 0.33398 first 32.396 -> 32.5.
    """
    grad = torch.tensor([[3.0, 97.0], [97.0, 3.0], [1.0, 2.0]], dtype=torch.bfloat16)
    chunk_rows(2, 2)
    out = vocab_parallel.scale_rows_(grad, torch.tensor([[0.0], [0.3333], [1.0]]))
    assert out is grad
    assert grad.tolist() == [[0, 0], [32.25, 1.0], [1, 2]]


if __name__ == "__main__":
    on_rank(Path(sys.argv[1]))
