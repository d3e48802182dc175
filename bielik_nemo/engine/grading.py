"""Answers of a model to tasks, with their rewards: sampled by every copy of the model, known to all ranks.

Rewards are computed in processes of their own while the next answers are sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from bielik_nemo.align.reward import Completion, Verdict
from bielik_nemo.align.scoring import Scored, Scorer
from bielik_nemo.config_grpo import Rewards, RewardTerm
from bielik_nemo.data.tasks import Prepared
from bielik_nemo.data.tokenizer import load_tokenizer
from bielik_nemo.engine import distributed
from bielik_nemo.engine.rollout import Answer, RolloutEngine, Sampling

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel


class Graded(NamedTuple):
    """An answer and what it is worth."""

    answer: Answer
    text: str
    scored: Scored

    @property
    def known(self) -> bool:
        """Whether its reward is known."""
        return self.scored.verdict is not Verdict.UNVERIFIABLE


class Grader:
    """Samples and grades.

    Args:
        tokenizer: directory.
        vocab_size: true vocabulary size.
        terms: of the reward, of each source.
        rewards: what computing them may take.
        rollouts: what samples: `megatron`, `vllm`.
        batch_size: answers that are sampled side by side.
    """

    def __init__(
        self,
        tokenizer: str,
        vocab_size: int,
        terms: Sequence[Sequence[RewardTerm]],
        rewards: Rewards,
        rollouts: str,
        batch_size: int,
    ):
        self.vocab_size, self.batch_size, self.rollouts = vocab_size, batch_size, rollouts
        self.terms, self.rewards = terms, rewards
        self.tokenizer = load_tokenizer(Path(tokenizer), vocab_size)
        self.scorer: Scorer | None = None

    def engine(self, model: GPTModel) -> RolloutEngine:
        """What samples from this rank's part of a model."""
        if self.rollouts == "vllm":
            from bielik_nemo.engine.vllm_rollout import VLLMEngine

            return VLLMEngine(model, self.vocab_size, self.tokenizer.name_or_path, self.batch_size)
        from bielik_nemo.engine.megatron_rollout import MegatronEngine

        return MegatronEngine(model, self.vocab_size, self.decode, self.batch_size)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, marks of tool calls among it, which are special to some tokenizers."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def __call__(
        self,
        model: GPTModel,
        tasks: Sequence[Prepared],
        keys: Sequence[int],
        samples: int,
        sampling: Sampling,
        on_task: Callable[[], None] = lambda: None,
    ) -> list[list[Graded]]:
        """The answers to each task, in order; the same on every rank.

        Args:
            model: this rank's part.
            tasks: which data-parallel ranks share.
            keys: of the noise of each; see `RolloutEngine.generate`.
            samples: answers to each.
            sampling: how they are drawn.
            on_task: called once a task's answers are there.
        """
        from megatron.core import parallel_state

        own = range(len(tasks))[
            parallel_state.get_data_parallel_rank() :: parallel_state.get_data_parallel_world_size()
        ]
        first = (
            parallel_state.get_tensor_model_parallel_rank() == parallel_state.get_pipeline_model_parallel_rank() == 0
        )
        submitted: dict[int, list[tuple[Answer, str, Future[Scored]]]] = {}
        prompts, own_keys = [tasks[i].ids.tolist() for i in own], [keys[i] for i in own]
        for number, answers in self.engine(model).generate(prompts, own_keys, samples, sampling):
            if first:
                task = tasks[own[number]]
                submitted[own[number]] = [self._submit(task, answer, sampling) for answer in answers]
            on_task()
        found = {i: [Graded(answer, text, job.result()) for answer, text, job in s] for i, s in submitted.items()}
        everyone = distributed.merged(found) if torch.distributed.is_initialized() else found
        return [everyone[i] for i in range(len(tasks))]

    def _submit(self, task: Prepared, answer: Answer, sampling: Sampling) -> tuple[Answer, str, Any]:
        if self.scorer is None:
            self.scorer = Scorer(self.terms, self.rewards).__enter__()
            self.scorer.start()
        marked = answer.ended and answer.ids[-1] in sampling.stop_ids
        text = self.decode(answer.ids[:-1] if marked else answer.ids)
        completion = Completion(text, len(answer.ids), answer.ended)
        return answer, text, self.scorer.submit(completion, task.task, task.source)

    def close(self) -> None:
        """End the processes that compute rewards."""
        if self.scorer is not None:
            self.scorer.__exit__(None, None, None)
            self.scorer = None


def summary(graded: Sequence[Sequence[Graded]]) -> dict[str, float]:
    """What answers are like in the mean.

    Returns:
        `reward`, of those whose reward is known; `reward_se`, the standard error of its mean over tasks; `correct`,
        share of the same; `unverifiable`, share of all; `answer_tokens`; `wrong_tokens`, of the wrong ones; `cut`, the
        share that did not end by itself.
    """
    every = [each for group in graded for each in group]
    known = [each for each in every if each.known]
    groups = [[each.scored.value for each in group if each.known] for group in graded]
    means = torch.tensor([sum(values) / len(values) for values in groups if values], dtype=torch.float64)
    wrong = [len(each.answer.ids) for each in known if each.scored.verdict is Verdict.WRONG]
    return {
        "reward": sum(each.scored.value for each in known) / max(len(known), 1),
        "reward_se": float(means.std() / len(means) ** 0.5) if len(means) > 1 else 0.0,
        "correct": sum(each.scored.verdict is Verdict.CORRECT for each in known) / max(len(known), 1),
        "unverifiable": 1 - len(known) / max(len(every), 1),
        "answer_tokens": sum(len(each.answer.ids) for each in every) / max(len(every), 1),
        "wrong_tokens": sum(wrong) / max(len(wrong), 1),
        "cut": sum(not each.answer.ended for each in every) / max(len(every), 1),
    }
