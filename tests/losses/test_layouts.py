"""Every loss under every layout: a training step's value and gradient are those of a dense float64 reference, to 1e-5.

Eight sequences of eight tokens, of which 8, 0, 3, 5, 1, 0, 7 and 2 count, so that micro-batches and ranks differ in
their numbers. 263 words are padded to 384 columns, 96 for each of four ranks (96, 96, 71 and none real), with 1e30 on
the padding. A rank walks through its sequences in micro-batches of two, adds up sums, counts and gradients, and divides
once, by the count of all ranks, as Megatron does. With context parallelism two ranks have half of every sequence each:
of four chunks the outer and the inner ones, which is Megatron's order.

Losses on preferences count pairs: 2, 0, 2, 1, 0, 0, 1 and 1 of the eight sequences, with answers of one to four tokens;
those on rewards count these answers. Context parallelism would split an answer and is not for them.

The reference writes each definition down with torch's softmax, on all columns and tokens at once. Vocabularies of other
sizes, other dtypes and chunks are in test_vocab_parallel.py, pipeline stages in tests/engine.
"""

import itertools
import math
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bielik_nemo.losses import (
    Sampled,
    agreement,
    answer_log_probs,
    cross_entropy,
    dpo,
    dpo_positive,
    forward_kl,
    grpo,
    jensen_shannon,
    mixture,
    most_likely,
    reverse_kl,
    sampled_kl,
    sparse_kl,
    token_log_probs,
)

S, B, WORDS, COLUMNS, MICRO_BATCH = 8, 8, 263, 384, 2
COUNTED = torch.tensor([8, 0, 3, 5, 1, 0, 7, 2])
_ = -1
ANSWERS = torch.tensor(  # [b, s]: 2p and 2p + 1 are the answers of the sequence's pair p
    [
        [0, 0, _, 1, 2, 2, 2, 3],
        [_, _, _, _, _, _, _, _],
        [_, 0, 1, 1, 1, 2, 3, 3],
        [0, 0, 0, 1, 1, 1, 1, _],
        [_, _, _, _, _, _, _, _],
        [_, _, _, _, _, _, _, _],
        [0, _, _, _, _, _, 1, 1],
        [_, 0, 0, 0, 0, 1, _, 1],
    ]
)
LAYOUTS = {  # tensor, context and data parallel size
    "one rank": (1, 1, 1),
    "tp2": (2, 1, 1),
    "tp4": (4, 1, 1),
    "tp2 dp2": (2, 1, 2),
    "tp2 cp2": (2, 2, 1),
    "cp2 dp2": (1, 2, 2),
}
T, BETA = 2.0, 0.3
WEIGHTS = {"forward_kl": 1.0, "reverse_kl": 0.5, "jensen_shannon": 2.0, "cross_entropy": 0.25}
KEPT = {"forward_kl": 1.0, "cross_entropy": 0.5}

PREFERENCES = {"beta": 0.5, "beta_rejected": 0.3, "label_smoothing": 0.1}
PENALTY = 2.5
CLIPS = {"clip_low": 0.2, "clip_high": 0.3, "max_tokens": 16}

Batch = dict[str, Tensor]


def whole_batch() -> Batch:
    """Logits in fp32, what was kept of the teacher's, labels and mask, all `[s, b, ...]`."""
    random = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, S, B, COLUMNS, generator=random)
    log_p = teacher[..., :WORDS].double().log_softmax(-1)
    ids = log_p.exp().view(S * B, WORDS).multinomial(20, replacement=True, generator=random).view(S, B, 20)
    top, top_ids = (teacher[..., :WORDS].double() / T).log_softmax(-1).topk(20)
    labels = torch.randint(WORDS, (S, B), generator=random)
    said = dense_log_probs(student[..., :WORDS].double(), labels, ANSWERS.T).float()
    reference = (said + 3 * torch.randn(said.shape, generator=random)).unflatten(1, (S, 2)).transpose(0, 1)
    reference[ANSWERS.amax(1) < 2 * torch.arange(S).unsqueeze(1)] = math.nan
    each = student[..., :WORDS].log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    old, held = (each + 0.3 * torch.randn(S, B, generator=random) for _ in range(2))
    advantage = torch.randn(2 * S, B, generator=random).gather(0, ANSWERS.T.clamp(min=0))
    student[..., WORDS:], teacher[..., WORDS:] = 1e30, 1e30
    return {
        "student": student,
        "teacher": teacher,
        "labels": labels,
        "mask": (torch.arange(S).unsqueeze(1) < COUNTED).float(),
        "ids": ids,
        "surprisal": -log_p.gather(-1, ids).mean(-1).float(),
        "top_ids": top_ids,
        "top": top.float(),
        "answers": ANSWERS.T,
        "old": old,
        "held": held,
        "advantage": advantage,
        "reference": reference,  # [p, b, 2]: of pair p of every sequence, as many places as tokens
    }


def dense_log_probs(z: Tensor, labels: Tensor, answers: Tensor) -> Tensor:
    """Summed log-probabilities `[b, 2s]` of the answers of logits `[s, b, v]`, one answer after the other."""
    each = z.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return torch.stack([(each * (answers == number)).sum(0) for number in range(2 * S)], dim=1)


def preferences(loss: Callable[..., tuple[Tensor, ...]], x: Batch, sharded: Batch, **options) -> tuple[Tensor, ...]:
    """A loss on the pairs of the batch."""
    every = torch.ones_like(x["labels"])
    sums, tokens = answer_log_probs(x["student"], x["labels"], every, x["answers"], 2 * S, **sharded)
    assert torch.equal(tokens, torch.stack([(x["answers"] == n).sum(0) for n in range(2 * S)], dim=1).float())
    policy, reference = sums.unflatten(1, (S, 2)).flatten(0, 1), x["reference"].transpose(0, 1).flatten(0, 1)
    return loss(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], **PREFERENCES, **options)


def rewarded(x: Batch, sharded: Batch, **options) -> tuple[Tensor, ...]:
    """A loss on the answers of the batch, each with an advantage."""
    policy = token_log_probs(x["student"], x["labels"], **sharded)
    given = (x[name] for name in ("old", "held", "advantage"))
    return grpo(policy, *given, torch.ones_like(policy), x["answers"], **CLIPS, **options)


LOSSES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "forward_kl": lambda x, **tp: forward_kl(x["student"], x["teacher"], x["mask"], temperature=T, **tp),
    "reverse_kl": lambda x, **tp: reverse_kl(x["student"], x["teacher"], x["mask"], temperature=T, **tp),
    "jensen_shannon": lambda x, **tp: jensen_shannon(
        x["student"], x["teacher"], x["mask"], beta=BETA, temperature=T, **tp
    ),
    "cross_entropy": lambda x, **tp: cross_entropy(x["student"], x["labels"], x["mask"], **tp),
    "sampled_kl": lambda x, **tp: sampled_kl(x["student"], x["ids"], x["surprisal"], x["mask"], **tp),
    "sparse_kl": lambda x, **tp: sparse_kl(x["student"], x["top_ids"], x["top"], x["mask"], temperature=T, **tp),
    "mixture": lambda x, **tp: mixture(
        x["student"], x["teacher"], x["labels"], x["mask"], WEIGHTS, temperature=T, beta=BETA, **tp
    ),
    "mixture of samples": lambda x, **tp: mixture(
        x["student"], Sampled(x["ids"], x["surprisal"]), x["labels"], x["mask"], KEPT, **tp
    ),
    "dpo": lambda x, **tp: preferences(dpo, x, tp),
    "dpo_positive": lambda x, **tp: preferences(dpo_positive, x, tp, penalty=PENALTY, form="bielik"),
    "dpo_positive smaug": lambda x, **tp: preferences(dpo_positive, x, tp, penalty=PENALTY, form="smaug"),
    "grpo": lambda x, **tp: rewarded(x, tp, normalization="answer", kl=0.1),
    "grpo of tokens": lambda x, **tp: rewarded(x, tp, normalization="tokens", kl=0.1),
    "dr_grpo": lambda x, **tp: rewarded(x, tp, normalization="constant", kl=0.0),
}
PAIRS = ("dpo", "dpo_positive", "dpo_positive smaug")
ANSWERED = {"grpo": 14, "dr_grpo": 14, "grpo of tokens": int((ANSWERS >= 0).sum())}
NUMBER = {name: 7 if name in PAIRS else ANSWERED.get(name, 26) for name in LOSSES}  # pairs, answers, counted tokens


def cases(*layouts: str) -> list[tuple[str, str]]:
    """Every loss under each of these layouts that it is for."""
    return [
        (where, loss)
        for where, loss in itertools.product(layouts, LOSSES)
        if loss not in (*PAIRS, *ANSWERED) or LAYOUTS[where][1] == 1
    ]


def dense(x: Batch) -> dict[str, Tensor]:
    """Each definition for every token, `[s, b]`; logits without padding."""
    z, t = x["student"], x["teacher"]
    p, q = (t / T).log_softmax(-1), (z / T).log_softmax(-1)
    r = torch.logaddexp(p + math.log(BETA), q + math.log(1 - BETA))
    kl = lambda a, b: (a.exp() * (a - b)).sum(-1)  # noqa: E731
    top_q = q.gather(-1, x["top_ids"])
    tail_p, tail_q = ((1 - each.exp().sum(-1)).log() for each in (x["top"], top_q))
    found = {
        "forward_kl": T**2 * kl(p, q),
        "reverse_kl": T**2 * kl(q, p),
        "jensen_shannon": T**2 * (BETA * kl(p, r) + (1 - BETA) * kl(q, r)),
        "cross_entropy": -z.log_softmax(-1).gather(-1, x["labels"].unsqueeze(-1)).squeeze(-1),
        "sampled_kl": -z.log_softmax(-1).gather(-1, x["ids"]).mean(-1) - x["surprisal"],
        "sparse_kl": T**2 * (kl(x["top"], top_q) + tail_p.exp() * (tail_p - tail_q)),
    }
    found["mixture"] = sum(weight * found[name] for name, weight in WEIGHTS.items())
    found["mixture of samples"] = found["sampled_kl"] + 0.5 * found["cross_entropy"]
    return found


def dense_preferences(x: Batch) -> dict[str, Tensor]:
    """Each definition for every pair, `[p]`."""
    policy = dense_log_probs(x["student"], x["labels"], x["answers"]).unflatten(1, (S, 2))
    ratio = policy - x["reference"].transpose(0, 1)
    chosen, rejected = ratio[~ratio.isnan().any(-1)].unbind(-1)
    beta, beta_rejected, e = PREFERENCES.values()
    below = torch.maximum(-chosen, torch.zeros_like(chosen))
    found = {}
    for name, factor in zip(PAIRS, (0, PENALTY, beta * PENALTY), strict=True):
        sigma = 1 / (1 + (-(beta * chosen - beta_rejected * rejected - factor * below)).exp())
        found[name] = -(1 - e) * sigma.log() - e * (1 - sigma).log()
    return found


def dense_rewarded(x: Batch) -> dict[str, Tensor]:
    """Each definition as the sum over all tokens of answers."""
    policy = x["student"].log_softmax(-1).gather(-1, x["labels"].unsqueeze(-1)).squeeze(-1)
    rho, a, answers = (policy - x["old"]).exp(), x["advantage"], x["answers"]
    surrogate = -torch.minimum(rho * a, rho.clamp(0.8, 1.3) * a)
    to_reference = x["held"] - policy
    held = surrogate + 0.1 * (to_reference.exp() - to_reference - 1)
    tokens = torch.stack([(answers == number).sum(0) for number in range(2 * S)])
    there = (answers >= 0) / tokens.gather(0, answers.clamp(min=0)).clamp(min=1)
    found = {"grpo": held * there, "grpo of tokens": held * (answers >= 0), "dr_grpo": surrogate * (answers >= 0) / 16}
    return {name: each.sum() / ANSWERED[name] for name, each in found.items()}


@pytest.fixture(scope="module")
def reference() -> dict[str, tuple[Tensor, Tensor]]:
    """Mean over counted tokens, or pairs, and its gradient, float64."""
    x = {name: each.double() if each.is_floating_point() else each for name, each in whole_batch().items()}
    x["student"], x["teacher"] = x["student"][..., :WORDS].requires_grad_(), x["teacher"][..., :WORDS]
    means = {name: (each * x["mask"]).sum() / COUNTED.sum() for name, each in dense(x).items()}
    means |= {name: each.mean() for name, each in dense_preferences(x).items()} | dense_rewarded(x)
    gradients = {name: torch.autograd.grad(mean, x["student"], retain_graph=True)[0] for name, mean in means.items()}
    return {name: (means[name].detach(), gradients[name]) for name in means}


def zigzag(size: int, index: int) -> Tensor:
    """The positions of one context-parallel rank: of 2 * size chunks one from the front and its mirror."""
    parts = torch.arange(S).chunk(2 * size)
    return torch.cat([parts[index], parts[2 * size - 1 - index]])


def on_rank(directory: Path) -> None:
    """Every case on this rank, written to one file."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))  # ranks out of step: fail, do not hang
    rank, results, whole = torch.distributed.get_rank(), {}, whole_batch()
    for layout, (tp, cp, dp) in LAYOUTS.items():
        ranks = torch.arange(tp * cp * dp).view(dp, cp, tp)
        tp_groups = {tuple(each.tolist()): torch.distributed.new_group(each.tolist()) for each in ranks.view(-1, tp)}
        data = {tuple(each.tolist()): torch.distributed.new_group(each.tolist()) for each in ranks.view(-1, tp).T}
        if rank not in ranks:
            continue
        at_dp, at_cp, at_tp = (ranks == rank).nonzero()[0].tolist()
        tp_group = next(group for members, group in tp_groups.items() if rank in members) if tp > 1 else None
        data_group = next(group for members, group in data.items() if rank in members)
        width = COLUMNS // tp
        columns = slice(at_tp * width, (at_tp + 1) * width)
        positions = zigzag(cp, at_cp) if cp > 1 else torch.arange(S)
        sequences = torch.arange(B).chunk(dp)[at_dp]
        for name, loss in LOSSES.items():
            if (layout, name) not in cases(layout):
                continue
            sums, gradient = torch.zeros(3), torch.zeros(S, B, COLUMNS)
            for part in sequences.split(MICRO_BATCH):
                x = {key: each[positions][:, part] for key, each in whole.items()}
                x |= {key: x[key][..., columns] for key in ("student", "teacher")}
                x["student"].requires_grad_()
                shared = {"vocab_size": WORDS, "tp_group": tp_group}
                total, count, *_ = loss(x, **shared)
                total.backward()
                agreed, _ = agreement(x["student"], most_likely(x["teacher"], **shared), x["mask"], **shared)
                sums += torch.stack([total.detach(), count, agreed])
                gradient[positions.unsqueeze(1), part, columns] = x["student"].grad
            results[f"{layout}.{name}.own"] = sums.clone()
            torch.distributed.all_reduce(sums, group=data_group)
            results[f"{layout}.{name}.sums"] = sums
            results[f"{layout}.{name}.gradient"] = gradient / sums[1]
    save_file(results, directory / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(launched) -> list[dict[str, Tensor]]:
    """Results of each of the four ranks."""
    return launched(__file__, 4)


def check(value: float, gradient: Tensor, wanted: tuple[Tensor, Tensor]) -> None:
    """Both to 1e-5: the value relative to itself, every element of the gradient relative to the largest."""
    assert value == pytest.approx(wanted[0].item(), rel=1e-5)
    assert not gradient[..., WORDS:].any()
    off = (gradient[..., :WORDS] - wanted[1]).abs().max() / wanted[1].abs().max()
    assert off < 1e-5


def collected(ranks: list[dict[str, Tensor]], layout: str, loss: str) -> tuple[Tensor, Tensor]:
    """Sums over all tokens, the same on every rank of the layout, and the gradient, of which each rank has its part."""
    there = [rank for rank in ranks if f"{layout}.{loss}.sums" in rank]
    assert len(there) == math.prod(LAYOUTS[layout])
    sums = [rank[f"{layout}.{loss}.sums"] for rank in there]
    assert all(torch.equal(each, sums[0]) for each in sums)
    return sums[0], sum(rank[f"{layout}.{loss}.gradient"].double() for rank in there)


@pytest.mark.parametrize(("layout", "loss"), cases(*LAYOUTS))
def test_equals_the_dense_reference(layout: str, loss: str, ranks, reference):
    (total, count, _), gradient = collected(ranks, layout, loss)
    assert count == NUMBER[loss]
    check(total.item() / count.item(), gradient, reference[loss])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_agreement_is_that_of_one_rank(layout: str, ranks):
    """A count, and so exact: tokens whose largest real logits are at the same word."""
    x = whole_batch()
    same = x["student"][..., :WORDS].argmax(-1) == x["teacher"][..., :WORDS].argmax(-1)
    (_, _, agreed), _ = collected(ranks, layout, "forward_kl")
    assert agreed == (same * x["mask"]).sum()


@pytest.mark.parametrize(("layout", "loss"), cases("tp2", "tp4", "tp2 dp2", "tp2 cp2"))
def test_a_gradient_scaled_by_the_number_of_ranks_would_be_seen(layout: str, loss: str, ranks, reference):
    """The fault of a sum over ranks that each of them differentiates: the gradient is tp times too large."""
    (total, count, _), gradient = collected(ranks, layout, loss)
    value = total.item() / count.item()
    check(value, gradient, reference[loss])
    with pytest.raises(AssertionError):
        check(value, LAYOUTS[layout][0] * gradient, reference[loss])


@pytest.mark.parametrize(("layout", "loss"), cases("tp2 dp2", "tp2 cp2", "cp2 dp2"))
def test_means_of_ranks_would_be_seen(layout: str, loss: str, ranks, reference):
    """The fault of dividing by each rank's own count, and taking the mean of what comes out."""
    own = [rank[f"{layout}.{loss}.own"] for rank in ranks]
    (_, _, _), gradient = collected(ranks, layout, loss)
    mean = sum(total.item() / count.item() for total, count, _ in own) / len(own)
    with pytest.raises(AssertionError):
        check(mean, gradient, reference[loss])


def test_masks_are_uneven_on_every_rank(ranks):
    """8 + 0 + 3 + 5 and 1 + 0 + 7 + 2 for two data-parallel ranks; by position 0 1 6 7 and 2 3 4 5 for context.

    Pairs: 2 + 0 + 2 + 1 and 0 + 0 + 1 + 1.
    """
    assert [ranks[i]["tp2 dp2.dpo.own"][1].item() for i in (0, 2)] == [5, 2]
    assert [ranks[i]["tp2 dp2.forward_kl.own"][1].item() for i in (0, 2)] == [16, 10]
    assert [ranks[i]["tp2 cp2.forward_kl.own"][1].item() for i in (0, 2)] == [14, 12]


if __name__ == "__main__":
    on_rank(Path(sys.argv[1]))
