"""A distance between hidden states joins the gradient where its layer stands; whole runs: test_distillation.py."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bielik_nemo.engine import distributed, hidden_states
from bielik_nemo.losses import hidden_state

MASK = torch.tensor([[1.0, 0, 1], [1, 1, 0]])  # [b, s]


class Layer(torch.nn.Linear):
    """A layer as Megatron calls it: its output is the stream and a context."""

    def __init__(self, number: int, width: int):
        super().__init__(width, width)
        self.layer_number = number

    def forward(self, stream: Tensor) -> tuple[Tensor, None]:
        return super().forward(stream), None


def stage(width: int, numbers: list[int], scale: Callable | None = None) -> SimpleNamespace:
    """A pipeline stage with these layers, numbered from 1 as Megatron does."""
    config = SimpleNamespace(hidden_size=width, grad_scale_func=scale)
    return SimpleNamespace(config=config, decoder=SimpleNamespace(layers=[Layer(each, width) for each in numbers]))


def run(model: SimpleNamespace, stream: Tensor) -> Tensor:
    for layer in model.decoder.layers:
        stream, _ = layer(stream)
    return stream


@pytest.fixture(autouse=True)
def two_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden_states, "get_num_microbatches", lambda: 2)


@pytest.mark.parametrize("factor", [1, 8])
@pytest.mark.parametrize("width", [6, 4])
def test_the_gradient_is_that_of_the_weighted_sum(width: int, factor: int):
    """Of layers 2 and 3 (of 0 to 3) the first follows the teacher's 4; the pair of layer 0 is another stage's."""
    torch.manual_seed(0)
    student, teacher = stage(width, [3, 4], None if factor == 1 else lambda loss: factor * loss), stage(6, [5, 6])
    stream, others = torch.randn(3, 2, width), torch.randn(3, 2, 6)
    first, second = student.decoder.layers
    weights = [first.weight, second.weight]
    with torch.no_grad():
        target, _ = teacher.decoder.layers[0](others)
    with distributed.model_parallel():
        hidden = hidden_states.HiddenStates(student, teacher, [[0, 0], [2, 4]], weight=0.5)
        assert list(hidden.projections) == (["1"] if width == 4 else [])
        projection = hidden.projections["1"] if width == 4 else None
        weights += [] if projection is None else [projection]
        total, _ = hidden_state(first(stream)[0], target, MASK.T, projection)
        assert len(hidden._outputs) == 0  # the student alone was run: nothing to compare with
        wanted = torch.autograd.grad(run(student, stream).sum() + factor * 0.5 * total, weights)
        hidden.expect(MASK)
        with torch.no_grad():
            run(teacher, others)
        found = torch.autograd.grad(run(student, stream).sum(), weights)
        for one, two in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, two)
        assert hidden.total().item() == pytest.approx(total.item())


def test_only_the_newest_step_is_told():
    """Two micro-batches a step: of three, the last two."""
    student, teacher = stage(6, [1]), stage(6, [1])
    with distributed.model_parallel():
        hidden = hidden_states.HiddenStates(student, teacher, [[0, 0]], weight=1.0)
        sums = []
        for seed in range(3):
            stream = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(seed))
            hidden.expect(MASK)
            with torch.no_grad():
                target, mine = run(teacher, stream), run(student, stream)
            sums.append(hidden_state(mine, target, MASK.T)[0].item())
        assert hidden.total().item() == pytest.approx(sums[1] + sums[2])


def test_projections_start_the_same_on_every_rank():
    """Whatever was drawn before; another pair has another one."""
    starts = []
    with distributed.model_parallel():
        for seed in range(2):
            torch.manual_seed(seed)
            hidden = hidden_states.HiddenStates(stage(4, [1, 2]), stage(6, [1, 2]), [[0, 0], [1, 1]], weight=1.0)
            starts.append(hidden.projections)
    assert torch.equal(starts[0]["0"], starts[1]["0"])
    assert not torch.equal(starts[0]["0"], starts[0]["1"])
    assert starts[0]["0"].shape == (6, 4)
