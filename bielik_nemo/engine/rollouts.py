"""The loop of GRPO in NeMo's trainer: before an update that wants new answers, sample, grade, compare and pack them.

A rollout is a number of prompts with their groups of answers, all of one policy; from it come one update or several.
Where there are several, what they need is kept in a file until they are done, so that a run that is interrupted between
them goes on with the same answers. Which prompts a rollout has and with what noise they are answered depend on the seed
and the rollout's number alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from bielik_nemo import ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.artifacts import write_text
from bielik_nemo.config_grpo import GRPO
from bielik_nemo.data.tasks import Prepared
from bielik_nemo.engine import convert, distributed, token_pass
from bielik_nemo.engine import model as models
from bielik_nemo.engine.grading import Graded, Grader, summary
from bielik_nemo.engine.policy_data import Sampled, Update, weighted
from bielik_nemo.engine.policy_files import load, save
from bielik_nemo.engine.rollout import Sampling
from bielik_nemo.engine.rollout_plan import plan
from bielik_nemo.errors import GateError
from bielik_nemo.losses import advantages

KEPT = 2
"""Newest rollouts whose answers stay on disk for a run that is interrupted."""


class Rollouts(pl.Callback):
    """Makes the answers that each update is of.

    Args:
        directory: where answers are left, `grpo/rollouts`.
        drawn: arguments of `plan`.
        settings: of the stage.
        grader: samples and grades.
        sampling: how answers are drawn.
        architecture: of the model.
        reference: directory of the stage whose model the policy is held to.
        dtype: of its parameters.
        seed: of the order of the tasks.
    """

    def __init__(
        self,
        directory: str,
        drawn: dict[str, Any],
        settings: GRPO,
        grader: Grader,
        sampling: Sampling,
        architecture: Architecture,
        reference: str,
        dtype: str,
        seed: int,
    ):
        self.directory, self.plan, self.settings = Path(directory), plan(**drawn), settings
        self.grader, self.sampling, self.seed = grader, sampling, seed
        self.architecture, self.origin, self.dtype = architecture, Path(reference), dtype
        self.number, self.groups = -1, []  # rollout that is worked on, its answers by prompt

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Load the reference; forget the answers of steps that will be done again."""
        self.reference = None
        if self.settings.kl:
            config = models.gpt_config(
                self.architecture,
                tp=module.config.tensor_model_parallel_size,
                pp=module.config.pipeline_model_parallel_size,
                dtype=self.dtype,
                seq_length=self.settings.seq_length,
            )
            self.reference = models.build(config, self.architecture).requires_grad_(False)
            convert.load_stage(self.reference, self.origin, self.architecture)
        if trainer.is_global_zero:
            self.directory.mkdir(parents=True, exist_ok=True)
            begun = -(-trainer.global_step // self.plan.updates)
            for path in self.directory.iterdir():
                if int(path.stem.split(".")[0]) >= begun:
                    path.unlink()
        distributed.barrier()

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        """Prepare the update that comes next, with new answers where it wants some.

        Raises:
            GateError: what samples is not what trains, or rewards fail too often.
        """
        number, place = divmod(trainer.global_step, self.plan.updates)
        if number != self.number:
            if not (place and self._kept(number, module)):
                self._new(number, module)
        minibatches = self.settings.prompts_per_rollout // self.settings.global_batch_size
        start = place % minibatches * self.settings.global_batch_size
        trainer.datamodule.begin(self._update(self.groups[start : start + self.settings.global_batch_size], trainer))

    def _update(self, groups: Sequence[Sequence[Sampled]], trainer: Any) -> Update:
        signal = [group for group in groups if any(each.advantage for each in group)]
        # Where no group has any, they all take part: there is always something that a step can be made of.
        chosen = signal if signal and self.settings.filter_groups else groups
        every, part = ([each for group in some for each in group] for some in (groups, chosen))
        by_tokens = self.settings.normalization == "tokens"
        size = [sum(len(each.answer) for each in some) if by_tokens else len(some) for some in (part, every)]
        unit = trainer.datamodule.global_batch_size
        return Update(part, size[0] / size[1], self.settings.seq_length, unit, self.seed)

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        """Check, with the first update of a rollout, that the model which learns from it is the one that made it.

        Raises:
            GateError: on every rank alike.
        """
        if trainer.global_step % self.plan.updates:
            return
        drift, allowed = module.step_metrics()["drift"], self.settings.mismatch_tolerance
        if not drift <= allowed:
            raise GateError(
                f"grpo: before the first update of rollout {self.number} log-probabilities differ by {drift:.4f} nats "
                f"per token from those of the model that sampled it, allowed: grpo.mismatch_tolerance={allowed:g}"
            )

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        """End the processes that compute rewards; leave what people can read."""
        self.grader.close()
        if trainer.is_global_zero:
            for path in self.directory.glob("*.safetensors"):
                path.unlink()

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        """End the processes that compute rewards."""
        self.grader.close()

    def _kept(self, number: int, module: Any) -> bool:
        """Take up the rollout of an interrupted run; whether it is still there."""
        path = self._path(number)
        if not path.is_file():
            ui.say(f"  the answers of rollout {number} are gone: its other updates are made of new ones")
            return False
        self.groups, module.rollout = load(path, self.settings.group_size)
        self.number = number
        return True

    def _new(self, number: int, module: Any) -> None:
        """Sample, grade and compare."""
        own, model = self.settings, module.core_module
        tasks = self.plan.drawn(number, own.prompts_per_rollout, self.seed)
        keys = range(number * own.prompts_per_rollout, (number + 1) * own.prompts_per_rollout)
        graded = self.grader(model, tasks, keys, own.group_size, self.sampling)
        self._leave(number, tasks, graded)
        rewards = torch.tensor([[each.scored.value if each.known else math.nan for each in group] for group in graded])
        each_advantage = advantages(rewards.double(), own.scale_advantages).tolist()
        conversations = [
            weighted(task.ids, np.array(each.answer.ids))
            for task, group in zip(tasks, graded, strict=True)
            for each in group
        ]
        size = own.seq_length, own.micro_batch_size
        old = token_pass.measure(model, module.preference, conversations, *size)
        kept = (
            old
            if self.reference is None
            else token_pass.measure(self.reference, module.preference, conversations, *size)
        )
        every = iter(zip(old, kept, strict=True))
        self.groups = [
            [
                Sampled(task.ids, np.array(each.answer.ids), *next(every), advantage)
                for each, advantage in zip(group, row, strict=True)
            ]
            for task, group, row in zip(tasks, graded, each_advantage, strict=True)
        ]
        signal = sum(any(row) for row in each_advantage) / len(each_advantage)
        mismatch = self._mismatch(number, graded, old)
        told = {name: value for name, value in summary(graded).items() if name != "reward_se"}
        module.rollout = told | {"signal": signal, "mismatch": mismatch}
        self.number = number
        if self.plan.updates > 1 and distributed.rank() == 0:
            save(self._path(number), self.groups, module.rollout)
            self._path(number - KEPT).unlink(missing_ok=True)

    def _mismatch(self, number: int, graded: Sequence[Sequence[Graded]], old: Sequence[np.ndarray]) -> float:
        """Mean distance per token between the log-probabilities of what samples and of what trains, in nats."""
        sampled = [np.array(each.answer.log_probs) for group in graded for each in group]
        found = float(np.abs(np.concatenate(sampled) - np.concatenate(old)).mean())
        if not found <= self.settings.mismatch_tolerance:
            raise GateError(
                f"grpo: rollout {number}: log-probabilities differ by {found:.4f} nats per token in the mean between "
                f"grpo.rollouts={self.settings.rollouts}, which samples, and the trainer, allowed: "
                f"grpo.mismatch_tolerance={self.settings.mismatch_tolerance:g}"
            )
        return found

    def _leave(self, number: int, tasks: Sequence[Prepared], graded: Sequence[Sequence[Graded]]) -> None:
        """Write the answers down; those whose reward failed in any case.

        Raises:
            GateError: too many of these.
        """
        rows = [_row(task, each) for task, group in zip(tasks, graded, strict=True) for each in group]
        failed = [row for row in rows if row["error"]]
        path = self.directory / f"{number:05d}.jsonl"
        left = rows if self.settings.save_answers else failed
        if left and distributed.rank() == 0:
            write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in left))
        allowed = self.settings.rewards.max_error_share
        if len(failed) > allowed * len(rows):
            raise GateError(
                f"grpo: rollout {number}: the reward of {len(failed):,} of {len(rows):,} answers failed, allowed: "
                f"{allowed:.2%} (grpo.rewards.max_error_share); the first: {failed[0]['error']}; all: {path}"
            )
        if failed:
            ui.say(f"  rollout {number}: the reward of {len(failed):,} answers failed, which take no part: {path}")

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:05d}.safetensors"


def _row(task: Prepared, graded: Graded) -> dict[str, Any]:
    answer, scored = graded.answer, graded.scored
    return {
        "prompt": task.task.prompt,
        "answer": graded.text,
        "value": scored.value,
        "verdict": scored.verdict.value,
        "parts": dict(scored.parts),
        "tokens": len(answer.ids),
        "ended": answer.ended,
        "source": task.source,
        "place": task.place,
        "error": scored.error,
    }
