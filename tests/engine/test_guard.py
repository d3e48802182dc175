"""A run stops on a loss that is no good, with its batch on file, and asks for a save when a signal has come."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bielik_nemo import stopping
from bielik_nemo.engine import cpu
from bielik_nemo.errors import GateError

cpu.enable()

from bielik_nemo.engine import guard  # noqa: E402


class Run:
    """A trainer as the callback sees it: 4 samples a step, in micro-batches of 1 on two data-parallel ranks."""

    def __init__(self, directory: Path, max_spike: float | None = 3.0):
        self.callback = guard.Guard(str(directory / "distill"), 4, max_spike)
        samples = [{"tokens": torch.tensor([i, 1]), "labels": torch.tensor([1, 2])} for i in range(400)]
        tokenizer = SimpleNamespace(ids_to_text=lambda ids: " ".join(map(str, ids)))
        self.trainer = SimpleNamespace(
            global_step=0,
            is_global_zero=True,
            should_stop=False,
            callback_metrics={},
            datamodule=SimpleNamespace(_train_ds=samples, tokenizer=tokenizer),
        )
        self.file = directory / "distill" / "bad_batch.json"

    def go(self, *losses: float, norm: float = 1.0) -> None:
        for loss in losses:
            self.trainer.global_step += 1
            self.trainer.callback_metrics = {"reduced_train_loss": torch.tensor(loss), "grad_norm": norm}
            self.callback.on_train_batch_end(self.trainer, None)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(guard, "get_micro_batch_size", lambda: 1)
    monkeypatch.setattr(guard.parallel_state, "get_data_parallel_world_size", lambda: 2)
    return Run(tmp_path)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_stops_and_leaves_its_batch(loss: float, run: Run):
    """The third step has the samples 8 to 11: the first two are micro-batch 0, one on each data-parallel rank."""
    run.go(2.0, 1.5)
    with pytest.raises(GateError) as caught:
        run.go(loss)
    assert str(caught.value) == (
        f"distill: the loss is {loss} at step 3; lower optim.lr, or look at its batch in {run.file}"
    )
    left = json.loads(run.file.read_text())
    assert (left["step"], left["fault"], left["losses_before"]) == (3, f"the loss is {loss}", [2.0, 1.5])
    assert [each["sample"] for each in left["samples"]] == [8, 9, 10, 11]
    assert [each["micro_batch"] for each in left["samples"]] == [0, 0, 1, 1]
    assert [each["data_parallel_rank"] for each in left["samples"]] == [0, 1, 0, 1]
    assert left["samples"][1]["tokens"] == [9, 1, 2] and left["samples"][1]["text"] == "9 1 2"


def test_the_batch_of_a_step_that_was_made_and_not_drawn(run: Run):
    """Six sequences of answers, whatever the number that a step draws."""
    made = [{"tokens": torch.tensor([100 + i, 1]), "labels": torch.tensor([1, 2])} for i in range(6)]
    run.trainer.datamodule.newest = made
    run.go(2.0)
    with pytest.raises(GateError):
        run.go(float("nan"))
    left = json.loads(run.file.read_text())
    assert [each["sample"] for each in left["samples"]] == list(range(6))
    assert [each["micro_batch"] for each in left["samples"]] == [0, 0, 1, 1, 2, 2]
    assert left["samples"][5]["tokens"] == [105, 1, 2]


def test_a_gradient_that_is_not_finite_stops(run: Run):
    with pytest.raises(GateError, match="distill: the gradient norm is nan at step 1"):
        run.go(2.0, norm=float("nan"))


def test_a_spike_stops(run: Run):
    """Ten losses of median 2.0; allowed are three times as much: 6.0 is, 6.1 = 3.05 * 2.0 is not."""
    run.go(*[1.0, 2.0, 3.0] * 3, 2.0, 6.0)
    with pytest.raises(
        GateError, match=r"the loss is 6\.1000, 3\.[01] times the median of the 11 .*max_loss_spike=3\)"
    ):
        run.go(6.1)
    assert json.loads(run.file.read_text())["step"] == 12


def test_there_is_no_spike_without_a_past_or_without_a_limit(run: Run, tmp_path: Path):
    run.go(*[1.0] * 9, 100.0)
    free = Run(tmp_path / "free", max_spike=None)
    free.go(*[1.0] * 20, 1e6)
    assert not run.file.exists() and not free.file.exists()


def test_below_its_floor_nothing_is_a_spike(run: Run):
    """Ten losses of 0.01 with a floor of 0.5: 3 * 0.5 is allowed, 1.6 is 3.2 times it."""
    run.callback.floor = 0.5
    run.go(*[0.01] * 10, 1.5)
    with pytest.raises(GateError, match=r"1\.6000, 3\.2 times 0\.5000, more than the median of the 11 steps before"):
        run.go(1.6)


def test_only_the_last_fifty_count(run: Run):
    """After thirty steps at 100 and fifty at 1, a loss of 4 is a spike."""
    run.callback.max_spike = None
    run.go(*[100.0] * 30, *[1.0] * 50)
    run.callback.max_spike = 3.0
    with pytest.raises(GateError, match=r"4\.0 times the median of the 50 steps"):
        run.go(4.0)


def test_a_resumed_run_remembers(run: Run, tmp_path: Path):
    run.go(*[1.0] * 20)
    again = Run(tmp_path)
    again.callback.load_state_dict(run.callback.state_dict())
    with pytest.raises(GateError, match="the 20 steps before"):
        again.go(4.0)


def test_a_signal_is_heeded_at_the_end_of_a_step_and_an_old_batch_goes(run: Run):
    run.file.parent.mkdir()
    run.file.write_text("{}")
    with stopping.listening():
        run.callback.on_train_start(run.trainer, None)
        assert not run.file.exists()
        run.go(2.0)
        assert not run.trainer.should_stop
        os.kill(os.getpid(), signal.SIGUSR1)
        run.go(2.0)
        assert run.trainer.should_stop
        assert str(stopping.stopped()).startswith("stopped by SIGUSR1")


def test_nemo_s_preemption_callback_still_hears_one_rank_and_ends_as_if_it_had_succeeded():
    """Why there is one of our own; when this fails, NeMo's may do."""
    import inspect

    from nemo.lightning.pytorch.callbacks import PreemptionCallback

    source = inspect.getsource(PreemptionCallback)
    assert "ignoring_handler" in source and "_save_last_checkpoint" in source and "sys.exit(0)" in source
