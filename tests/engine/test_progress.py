"""`metrics.jsonl` holds whole records of finished steps, also after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from bielik_nemo.engine import progress

STEP = {"step": 1, "loss": 2.5, "tokens": 64, "seconds": 1.0}
HELD_OUT = {"step": 1, "held_out_loss": 3.0, "tokens": 64, "seconds": 1.5}


def lines(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_the_newest_training_record(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert progress.last_step(path) == {}
    path.write_text("")
    assert progress.last_step(path) == {}
    path.write_text(lines(HELD_OUT))
    assert progress.last_step(path) == {}
    path.write_text(lines(STEP, {**STEP, "step": 2}, HELD_OUT))
    assert progress.last_step(path)["step"] == 2


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    """Whatever number of its bytes was written; with all but the newline it is whole."""
    path = tmp_path / "metrics.jsonl"
    newest = lines({**STEP, "step": 2})
    for keep in range(1, len(newest)):
        path.write_text(lines(STEP, HELD_OUT) + newest[:keep])
        whole = keep == len(newest) - 1
        assert len(progress.read(path)) == 2 + whole
        assert progress.last_step(path)["step"] == 1 + whole


class Run:
    """A trainer as the callback sees it, for a run of 6 steps of 64 tokens, logged every 2, measured every 3."""

    def __init__(self, path: Path, step: int = 0, first: bool = True):
        self.measured: list[int] = []
        self.module = SimpleNamespace(core_module="student")
        self.trainer = SimpleNamespace(
            global_step=step,
            max_steps=6,
            is_global_zero=first,
            callback_metrics={"reduced_train_loss": 0.0, "grad_norm": 0.5},
        )
        self.optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
        held_out = SimpleNamespace(record=self.measure)
        self.callback = progress.TrainingProgress(str(path), 64, log_every=2, validate_every=3, held_out=held_out)

    def measure(self, model: str) -> dict[str, float]:
        assert model == "student"
        self.measured.append(self.trainer.global_step)
        return {"held_out_loss": 4.0 - 0.1 * self.trainer.global_step}

    def go(self, until: int) -> None:
        self.callback.on_train_start(self.trainer, self.module)
        self.go_on(until)

    def go_on(self, until: int) -> None:
        while self.trainer.global_step < until:
            self.trainer.global_step += 1
            self.trainer.callback_metrics["reduced_train_loss"] = 2.0 - 0.1 * self.trainer.global_step
            self.callback.on_before_optimizer_step(self.trainer, self.module, self.optimizer)
            self.callback.on_train_batch_end(self.trainer, self.module)


def steps(path: Path, kind: str) -> list[int]:
    return [record["step"] for record in progress.read(path) if kind in record]


def test_what_is_recorded(tmp_path):
    """Every second step and the last; measured before the first, every third and after the last, here the same one."""
    path = tmp_path / "metrics.jsonl"
    run = Run(path)
    run.go(6)
    run.callback.on_train_end(run.trainer, run.module)
    assert steps(path, "loss") == [2, 4, 6]
    assert steps(path, "held_out_loss") == run.measured == [0, 3, 6]
    record = progress.last_step(path)
    assert record["loss"] == pytest.approx(1.4)
    assert (record["lr"], record["grad_norm"], record["tokens"]) == (0.1, 0.5, 384)
    assert record["tokens_per_second"] > 0
    seconds = [r["seconds"] for r in progress.read(path)]
    assert seconds == sorted(seconds)


def test_what_the_module_measured_stands_beside_the_loss(tmp_path):
    """Asked for on every rank and only where a record is due: a collective."""
    for first in (True, False):
        path, asked = tmp_path / f"{first}.jsonl", []
        run = Run(path, first=first)
        run.module.step_metrics = lambda asked=asked: asked.append(1) or {"kl": 1.5, "agreement": 0.25}
        run.go(4)
        assert len(asked) == 2
    record = progress.last_step(tmp_path / "True.jsonl")
    assert list(record)[:4] == ["step", "loss", "kl", "agreement"]
    assert (record["kl"], record["agreement"]) == (1.5, 0.25)


def test_what_stands_beside_the_bar(tmp_path):
    """Half of the speed that the devices could have, as MFU; only what was measured."""
    run = Run(tmp_path / "metrics.jsonl")
    run.callback.peak = 1e-9
    run.go(2)
    rate = progress.last_step(run.callback.path)["tokens_per_second"]
    run.callback.peak = 2 * rate
    run.callback.mark -= 2 * 64 / rate  # the next two steps took as long as that at the rate of those before
    run.go_on(4)
    record = progress.last_step(run.callback.path)
    assert record["mfu"] == pytest.approx(record["tokens_per_second"] / (2 * rate), abs=1e-4)
    assert run.callback.info.startswith("loss 1.600  ") and run.callback.info.endswith("norm 0.50  lr 1.0e-01")
    assert "tokens/s  MFU " in run.callback.info
    bare = Run(tmp_path / "bare.jsonl")
    bare.go(2)
    assert "mfu" not in progress.last_step(bare.callback.path) and "MFU" not in bare.callback.info


def test_the_best_student_is_kept_after_each_measurement_but_the_first(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(progress.best, "keep", lambda *each: kept.append(each))
    run = Run(tmp_path / "metrics.jsonl")
    run.callback.best = str(tmp_path / "best")
    run.go(6)
    assert kept == [("student", tmp_path / "best", step, 4.0 - 0.1 * step) for step in (3, 6)]


def test_a_resumed_run_drops_what_it_does_again_and_keeps_the_clock(tmp_path):
    """Killed after step 5 with a half line, resumed from the checkpoint of step 4."""
    path = tmp_path / "metrics.jsonl"
    Run(path).go(5)
    earlier = [r | {"seconds": r["seconds"] + 100} for r in progress.read(path)]
    path.write_text(lines(*earlier, {"step": 5, "held_out_loss": 1.0, "seconds": 900.0}) + '{"step": 5, "lo')
    run = Run(path, step=4)
    run.go(6)
    assert steps(path, "loss") == [2, 4, 6]
    assert steps(path, "held_out_loss") == [0, 3, 6]
    assert run.measured == [6]
    assert 100 <= progress.last_step(path)["seconds"] < 200


def test_a_run_that_starts_again_forgets_the_records_of_the_one_before(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Run(path).go(5)
    Run(path).go(2)
    assert steps(path, "loss") == [2]
    assert steps(path, "held_out_loss") == [0]


def test_other_ranks_measure_along_but_write_nothing(tmp_path):
    """The held-out loss is a collective; the file is rank 0's."""
    path = tmp_path / "metrics.jsonl"
    run = Run(path, first=False)
    run.go(6)
    assert run.measured == [0, 3, 6]
    assert not path.exists()


def test_nemo_s_progress_printer_still_communicates_on_one_rank_only():
    """Why `replace_progress_bar=False` and a callback of our own; when this fails, NeMo's printer may do."""
    import inspect

    from bielik_nemo.engine import cpu

    cpu.enable()
    from nemo.lightning.pytorch.callbacks.progress_printer import ProgressPrinter
    from nemo.lightning.pytorch.strategies.megatron_strategy import MegatronStrategy
    from nemo.lightning.pytorch.strategies.utils import fix_progress_bar

    assert inspect.signature(MegatronStrategy.__init__).parameters["replace_progress_bar"].default is True
    assert "if not trainer.is_global_zero:\n                        printer.disable()" in inspect.getsource(
        fix_progress_bar
    )
    step = inspect.getsource(ProgressPrinter.on_train_batch_end)
    assert step.index("if self.is_disabled:") < step.index("self.log_megatron_timers(timers)")  # which all-gathers
