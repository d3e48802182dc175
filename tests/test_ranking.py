"""Ranking over made-up stages: `run_stage` writes what the real ones leave, and notes what it was asked for."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bielik_nemo import ranking, ui
from bielik_nemo.artifacts import Manifest, write_json
from bielik_nemo.config import Config
from bielik_nemo.config_prune import Target
from bielik_nemo.config_training import DistillWeights
from bielik_nemo.errors import DataError, GateError, UserError
from bielik_nemo.stages import Stage

SIZES = {"l4": (4, 64, 96, 4), "l3": (3, 64, 160, 4), "l2": (2, 64, 160, 4), "l1": (1, 64, 160, 4)}
LOSSES = {"l4": (3.0, 2.75), "l3": (3.5, 2.5), "l2": (4.0, 2.625), "l1": (9.0, 1.0)}  # pruned, distilled


def finish(directory: Path, **metrics: Any) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    Manifest(directory.name, "mark", {}, {}, {}, {}, metrics, "now", 1.0).write(directory)


@dataclass
class Stages:
    """A `run_stage` that leaves the losses of LOSSES, in two languages for l4."""

    before: Callable[[str, str], None] = lambda stage, name: None
    asked: list[tuple[str, str]] = field(default_factory=list)
    configs: dict[str, Config] = field(default_factory=dict)

    def __call__(self, config: Config, stage: Stage, run_dir: Path) -> None:
        if Manifest.read(run_dir / stage.name):
            return
        self.before(stage.name, run_dir.name)
        self.asked.append((stage.name, run_dir.name))
        self.configs[run_dir.name] = config
        assert (run_dir / "score" / "manifest.json").is_file()  # through the link
        if stage.name == "distill":
            pruned, distilled = LOSSES[run_dir.name]
            rows = [
                {"step": 0, "held_out_loss": pruned},
                {"step": 2, "loss": 0.1},
                {"step": 2, "held_out_loss": 9.9},
                {"step": 4, "held_out_loss": distilled},
            ]
            if run_dir.name == "l4":
                rows[0]["held_out_loss_by_language"] = {"pl": 3.5, "en": 2.5}
                rows[-1]["held_out_loss_by_language"] = {"pl": 3.0, "en": 2.5}
            (run_dir / "distill").mkdir()
            (run_dir / "distill" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        finish(run_dir / stage.name)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for name in ("import_hf", "data"):
        finish(tmp_path / name)
    finish(tmp_path / "score", source_loss=2.25)
    axes = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")
    rows = [{"name": name, **dict(zip(axes, sizes, strict=True))} for name, sizes in SIZES.items()]
    write_json(tmp_path / "search" / "candidates.json", {"feasible": 4, "candidates": rows})
    write_json(tmp_path / "search" / "target.json", asdict(Target(*SIZES["l4"])))
    return tmp_path


@pytest.fixture
def config() -> Config:
    config = Config()
    config.prune.search.top_k, config.prune.search.distill_steps = 3, 4
    config.trainer.max_steps, config.trainer.validate_every, config.optim.warmup_steps = 40, 20, 10
    return config


def found(run_dir: Path) -> dict[str, dict]:
    rows = json.loads((run_dir / "search" / "candidates.json").read_text())["candidates"]
    return {row["name"]: row for row in rows}


def test_the_best_after_distillation_is_the_target(run_dir: Path, config: Config):
    """Pruned, 3.0 < 3.5 < 4.0: l4, l3, l2. Distilled, 2.5 < 2.625 < 2.75: l3, l2, l4. The fourth is not asked."""
    metrics = ranking.rank(config, run_dir, Stages())
    assert metrics == {"target": "l3", "zero_shot_loss": 3.5, "distilled_loss": 2.5}
    target = json.loads((run_dir / "search" / "target.json").read_text())
    assert Target(**target) == Target(3, 64, 160, 4)
    rows = found(run_dir)
    ranks = {name: (row.get("zero_shot_rank"), row.get("distilled_rank")) for name, row in rows.items()}
    assert ranks == {"l4": (1, 3), "l3": (2, 1), "l2": (3, 2), "l1": (None, None)}
    assert (rows["l4"]["zero_shot_loss"], rows["l4"]["distilled_loss"]) == LOSSES["l4"]
    assert rows["l4"]["zero_shot_loss_by_language"] == {"pl": 3.5, "en": 2.5}
    assert rows["l4"]["distilled_loss_by_language"] == {"pl": 3.0, "en": 2.5}
    assert "zero_shot_loss_by_language" not in rows["l3"]
    assert json.loads((run_dir / "search" / "candidates.json").read_text())["source_loss"] == 2.25


def test_each_candidate_is_a_short_run_of_its_own(run_dir: Path, config: Config):
    """4 of 40 steps: a tenth of 10 steps of warm-up and of a validation every 20."""
    stages = Stages()
    ranking.rank(config, run_dir, stages)
    short = stages.configs["l3"]
    assert (short.prune.target, short.trainer.max_steps) == (Target(3, 64, 160, 4), 4)
    assert (short.optim.warmup_steps, short.trainer.validate_every) == (1, 2)
    assert short.run.dir == str(run_dir / "search" / "runs" / "l3")
    assert "search" not in short.pipeline.stages and short.pipeline.stages[-1] == "distill"
    assert (config.trainer.max_steps, config.prune.target) == (40, Target())  # the whole run's is as it was
    config.optim.warmup_steps, config.trainer.max_steps = 1, 2  # longer than the whole run
    assert ranking.candidate_config(config, run_dir).optim.warmup_steps == 2


def test_one_pass_of_the_teacher_serves_all(run_dir: Path, config: Config):
    stages = Stages()
    ranking.rank(config, run_dir, stages)
    pairs = [(stage, name) for name in ("l4", "l3", "l2") for stage in ("prune", "distill")]
    assert stages.asked == [("teacher", "shared"), *pairs]
    runs = run_dir / "search" / "runs"
    assert os.readlink(runs / "l3" / "teacher") == "../shared/teacher"
    assert os.readlink(runs / "l3" / "import_hf") == "../../../import_hf"
    assert (runs / "l3" / "teacher").samefile(runs / "shared" / "teacher")


@pytest.mark.parametrize(("key", "value"), [("temperature", 2.0), ("weights", DistillWeights(reverse_kl=0.5))])
def test_for_a_loss_that_samples_cannot_give_the_teacher_runs_beside_each(
    key: str, value: object, run_dir: Path, config: Config
):
    setattr(config.distill, key, value)
    stages = Stages()
    ranking.rank(config, run_dir, stages)
    assert [stage for stage, _ in stages.asked] == ["prune", "distill"] * 3
    assert "teacher" not in stages.configs["l3"].pipeline.stages
    assert not (run_dir / "search" / "runs" / "l3" / "teacher").exists()


def test_the_most_likely_ids_serve_all_at_any_temperature(run_dir: Path, config: Config):
    config.distill.temperature, config.teacher.kind = 2.0, "top_k"
    assert "teacher" in ranking.stages(config)


def test_a_restart_asks_only_for_what_is_left(run_dir: Path, config: Config):
    def killed(stage: str, name: str) -> None:
        if (stage, name) == ("distill", "l3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ranking.rank(config, run_dir, Stages(before=killed))
    assert "zero_shot_loss" not in found(run_dir)["l4"]  # nothing is told before all is known
    again = Stages()
    assert ranking.rank(config, run_dir, again)["target"] == "l3"
    assert again.asked == [("distill", "l3"), ("prune", "l2"), ("distill", "l2")]


def test_one_that_diverges_is_told_and_the_others_go_on(run_dir: Path, config: Config):
    def diverges(stage: str, name: str) -> None:
        if (stage, name) == ("distill", "l3"):
            raise GateError("distill: the loss is nan at step 2")

    assert ranking.rank(config, run_dir, Stages(before=diverges))["target"] == "l2"
    rows = found(run_dir)
    assert rows["l3"]["failed"] == "distill: the loss is nan at step 2" and "distilled_rank" not in rows["l3"]
    assert (rows["l2"]["distilled_rank"], rows["l4"]["distilled_rank"]) == (1, 2)


def test_a_loss_that_is_no_number_has_no_rank(run_dir: Path, config: Config, monkeypatch: pytest.MonkeyPatch):
    """The last step broke l4, whose loss compares with none; as `sorted` and `min` see it, it would stay first."""
    monkeypatch.setitem(LOSSES, "l4", (3.0, math.nan))
    assert ranking.rank(config, run_dir, Stages())["target"] == "l3"
    rows = found(run_dir)
    assert "held-out loss of l4 is 3.0 pruned, nan distilled" in rows["l4"]["failed"]
    assert "distilled_rank" not in rows["l4"] and "distilled_loss" not in rows["l4"]
    assert [rows[name]["distilled_rank"] for name in ("l3", "l2")] == [1, 2]


@pytest.mark.parametrize("error", [GateError("all bad"), UserError("no space left on device")])
def test_what_concerns_all_candidates_stops_the_run(run_dir: Path, config: Config, error: UserError):
    def fails(stage: str, name: str) -> None:
        if stage == "distill":
            raise error

    with pytest.raises(type(error), match=r"all bad|no space left"):
        ranking.rank(config, run_dir, Stages(before=fails))
    assert json.loads((run_dir / "search" / "target.json").read_text())["num_layers"] == 4


def test_a_line_per_candidate_with_its_losses_and_the_time_left(
    run_dir: Path, config: Config, monkeypatch: pytest.MonkeyPatch
):
    """A clock that a distillation moves by 10 s: 20 s are left after the first, 10 after the second."""
    said, clock = [], [0.0]
    monkeypatch.setattr(ui, "say", said.append)
    monkeypatch.setattr(ranking.time, "monotonic", lambda: clock[0])

    def takes(stage: str, name: str) -> None:
        clock[0] += 10 if stage == "distill" else 0

    ranking.rank(config, run_dir, Stages(before=takes))
    assert said[1::2] == [
        "candidate  1/3 l4: held-out loss 3.000 pruned, 2.750 distilled; 20 s left",
        "candidate  2/3 l3: held-out loss 3.500 pruned, 2.500 distilled; 10 s left",
        "candidate  3/3 l2: held-out loss 4.000 pruned, 2.625 distilled; 0 s left",
    ]
    said.clear()
    ranking.rank(config, run_dir, Stages())
    assert said[1] == "candidate  1/3 l4: held-out loss 3.000 pruned, 2.750 distilled"  # done before: who knows


@pytest.mark.parametrize("rows", [[], [{"step": 0, "held_out_loss": 1.0}], [{"step": 2, "held_out_loss": 1.0}] * 2])
def test_losses_need_the_first_and_the_last_measurement(tmp_path: Path, rows: list[dict]):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"metrics\.jsonl: found \d held-out losses"):
        ranking.losses(path)
