"""The rewards as an environment of NeMo-RL: one turn, which ends with the answer's reward.

NeMo-RL hands an environment the text of an answer, here with its end (see run.py), not its tokens: an answer is cut
where its text has no end, and its tokens are counted by tokenising the text again.

NeMo-RL has no answer without a reward. One whose reward failed gets the mean of its group, which makes its advantage 0,
and so many of them that `max_error_share` is passed stop the run. Rewards are rounded to multiples of 2 ** -12: the
mean of equal ones is then exact in float32, and a group without signal has an advantage of exactly 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bielik_nemo.align.reward import Completion, Task
from bielik_nemo.align.scoring import Scored, Scorer
from bielik_nemo.config_grpo import Rewards, RewardTerm
from bielik_nemo.errors import GateError

STEPS = 4096
"""To which a reward of 1 is divided."""


class TaskEnvironment:
    """Scores answers; Ray makes an actor of it.

    Args:
        settings: of the environment, as render.py writes them.
        tokenizer: of the model; None: the one in the settings is loaded.
    """

    def __init__(self, settings: dict[str, Any], tokenizer: Any = None) -> None:
        self.settings, self.tokenizer = settings, tokenizer or _tokenizer(settings["tokenizer"])
        self.ends = tuple(self.tokenizer.decode([token]) for token in settings["stop_ids"])
        terms = [[RewardTerm(**term) for term in source] for source in settings["terms"]]
        self.open = ExitStack()
        self.scorer = self.open.enter_context(Scorer(terms, Rewards(**settings["rewards"])))

    def step(self, message_log_batch: Sequence[Sequence[dict[str, str]]], metadata: Sequence[dict[str, Any]]) -> Any:
        """The rewards of a batch of answers, float32 `[b]`, in NeMo-RL's `EnvironmentReturn`.

        Args:
            message_log_batch: the turns of each conversation; the last one is the answer.
            metadata: the line of each one's task, as run.py hands it on.

        Raises:
            GateError: more rewards failed than `rewards.max_error_share` allows.
        """
        import torch
        from nemo_rl.environments.interfaces import EnvironmentReturn

        answers = [self.completion(turns[-1]["content"]) for turns in message_log_batch]
        futures = [
            self.scorer.submit(answer, task_of(line), line["source"])
            for answer, line in zip(answers, metadata, strict=True)
        ]
        scored = [future.result() for future in futures]
        self.record(answers, metadata, scored)
        self.check(scored)
        rewards = values([line["place"] for line in metadata], scored)
        return EnvironmentReturn(
            observations=[{"role": "environment", "content": ""} for _ in scored],
            metadata=list(metadata),
            next_stop_strings=[None] * len(scored),
            rewards=torch.tensor(rewards, dtype=torch.float32),
            terminateds=torch.ones(len(scored)),
            answers=None,
        )

    def completion(self, text: str) -> Completion:
        """An answer as a reward takes it: without the token that ends it, with the text that may do so instead."""
        tokens = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if end := next((end for end in self.ends if text.endswith(end)), ""):
            return Completion(text.removesuffix(end), tokens)
        return Completion(text, tokens, ended=text.endswith(tuple(self.settings["stop"])))

    def check(self, scored: Sequence[Scored]) -> None:
        """Stop where too many rewards failed.

        Raises:
            GateError: so they did.
        """
        failed, allowed = [each.error for each in scored if each.error], self.settings["rewards"]["max_error_share"]
        if len(failed) > allowed * len(scored):
            raise GateError(
                f"grpo.rewards.max_error_share: the rewards of {len(failed)} of {len(scored)} answers failed, allowed: "
                f"{allowed:.1%}; the first: {failed[0]}"
            )

    def record(self, answers: Sequence[Completion], lines: Sequence[dict[str, Any]], scored: Sequence[Scored]) -> None:
        """Write the answers of this call with their rewards, where they are wanted, to a file of their own."""
        if not self.settings["answers"]:
            return
        directory = Path(self.settings["answers"])
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / f"{len(list(directory.iterdir())):05}.jsonl", "x", encoding="utf-8") as file:
            for answer, line, found in zip(answers, lines, scored, strict=True):
                row = {
                    "prompt": line["prompt"],
                    "answer": answer.text,
                    "value": found.value,
                    "verdict": found.verdict,
                    "parts": found.parts,
                    "tokens": answer.tokens,
                    "ended": answer.ended,
                    "source": line["source"],
                    "place": line["place"],
                    "error": found.error,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, float]]:
        """Nothing: NeMo-RL's interface has it, and its GRPO does not call it."""
        return batch, {}

    def shutdown(self) -> None:
        """End the processes that compute rewards."""
        self.open.close()


def task_of(line: dict[str, Any]) -> Task:
    """What a reward is told, of a line that the stage `tasks` has left."""
    return Task(line["prompt"], line["answer"], line["language"], tuple(line["tools"]))


def values(groups: Sequence[str], scored: Sequence[Scored]) -> list[float]:
    """The reward of each answer: its own, or the mean of its group's where it failed; 0 in a group where all did.

    Args:
        groups: which group each answer is of.
        scored: of each answer.
    """
    known: dict[str, list[float]] = {}
    for group, each in zip(groups, scored, strict=True):
        if not each.error:
            known.setdefault(group, []).append(round(each.value * STEPS) / STEPS)
    means = {group: sum(found) / len(found) for group, found in known.items()}
    return [
        means.get(group, 0.0) if each.error else round(each.value * STEPS) / STEPS
        for group, each in zip(groups, scored, strict=True)
    ]


def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
