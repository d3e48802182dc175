"""Settings of reinforcement learning from verifiable rewards: tasks, rollouts, rewards, GRPO.

See config.py, whose rules these follow. Defaults: rate, batch and KL of Bielik 11B v3 (arXiv 2601.11579); the clip of
arXiv 2402.03300. Group size, lengths and temperature are our choice, since no report of Bielik gives them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional


@dataclass
class RewardTerm:
    """One part of a task's reward: a function of the answer and the task (see bielik_nemo/align/reward.py)."""

    function: str = ""  # dotted path, such as bielik_nemo.align.rewards.maths
    weight: float = 1.0
    options: dict[str, float] = field(default_factory=dict)  # its further arguments


@dataclass
class TaskSource:
    """Tasks whose answers can be verified: a .jsonl file, a directory of them, or a built-in set."""

    path: str = ""
    language: str = ""
    rewards: list[RewardTerm] = field(default_factory=list)  # the first one's verdict is the answer's


@dataclass
class Rewards:
    """What one call of a reward may take, and how often it may fail."""

    timeout_s: float = 10.0
    memory_gib: float = 2.0  # of a process that computes rewards, beyond what its libraries take
    workers: int = 2  # such processes, on each machine
    max_error_share: float = 0.01  # of a rollout's answers; more whose reward fails stop the run


@dataclass
class GRPO:
    """Group relative policy optimisation; what is not here is optim's."""

    engine: str = "megatron"  # megatron: here; nemo_rl: rendered for NeMo-RL and submitted
    sources: list[TaskSource] = field(default_factory=list)
    rewards: Rewards = field(default_factory=Rewards)
    epochs: float = 1.0  # our choice
    max_steps: Optional[int] = None  # updates; null: as many as the epochs take
    prompts_per_rollout: int = 128  # whose answers are sampled from one policy
    global_batch_size: int = 128  # prompts of an update: fewer than of a rollout, and it gives several updates
    passes_per_rollout: int = 1  # how often an update is made of each answer
    group_size: int = 8  # answers to a prompt
    rollouts: str = "megatron"  # what samples them: megatron, vllm
    rollout_batch_size: int = 64  # answers that are sampled side by side, of each copy of the model
    max_prompt_tokens: int = 2048  # tasks with longer prompts are left out
    max_answer_tokens: int = 4096
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all words
    stop: list[str] = field(default_factory=list)  # texts that end an answer, beside the template's own end
    seq_length: int = 8192  # that holds a prompt and its answer at least; as many answers as fit share one
    micro_batch_size: int = 1
    recompute: str = "full"
    schedule: str = "constant"
    lr: float = 1e-6
    min_lr: float = 0.0
    warmup_steps: int = 0
    decay_steps: int = 0
    weight_decay: float = 0.0  # our choice
    scale_advantages: bool = True  # by the group's standard deviation; Dr. GRPO: false
    normalization: str = "answer"  # of a token's loss: its answer's tokens; constant: max_answer_tokens (Dr. GRPO)
    clip_low: float = 0.2
    clip_high: float = 0.2  # above clip_low: an asymmetric clip
    kl: float = 0.001  # weight of the low-variance KL from the model that it starts from; 0: none is kept
    filter_groups: bool = True  # groups whose answers all have the same reward take no part in an update
    mismatch_tolerance: float = 0.02  # nats per token between what samples and what trains, in the mean
    save_answers: bool = True  # text and reward of every answer in grpo/rollouts
