"""What runs in NeMo-RL's container: `python -m bielik_nemo.align.nemo_rl.run config.yaml`.

NeMo-RL trains; what it is given besides its configuration are the tasks as the stage `tasks` left them, already in
tokens, the environment that scores them, and the loss around its own. Its `grpo_train` decodes answers on the driver
(nemo_rl/experience/rollouts.py), with the tokenizer that it is given. These names of NeMo-RL 0.7.0 are used here, in
environment.py and in tests/align/nemo_rl, which holds them against a checkout:

    nemo_rl/algorithms/grpo.py                MasterConfig, setup, grpo_train
    nemo_rl/algorithms/utils.py               get_tokenizer
    nemo_rl/data/datasets                     AllTaskProcessedDataset
    nemo_rl/data/interfaces.py                TaskDataSpec
    nemo_rl/distributed/virtual_cluster.py    init_ray, PY_EXECUTABLES
    nemo_rl/environments/interfaces.py        EnvironmentReturn
    nemo_rl/models/generation                 configure_generation_config
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bielik_nemo.align.nemo_rl.environment import TaskEnvironment
from bielik_nemo.align.nemo_rl.loss import Loss
from bielik_nemo.align.nemo_rl.render import NAME
from bielik_nemo.errors import GateError

RESULT = "result"
"""File beside the configuration that names the checkpoint with the result."""


def main(path: str) -> None:
    """Train, from the newest checkpoint in the configured directory where there is one, and name the result."""
    import ray
    import yaml
    from nemo_rl.algorithms.grpo import MasterConfig, grpo_train, setup
    from nemo_rl.algorithms.utils import get_tokenizer
    from nemo_rl.data.datasets import AllTaskProcessedDataset
    from nemo_rl.data.interfaces import TaskDataSpec
    from nemo_rl.distributed.virtual_cluster import PY_EXECUTABLES, init_ray
    from nemo_rl.models.generation import configure_generation_config

    settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    ours = settings.pop(NAME)
    config = MasterConfig(**settings)
    init_ray()
    tokenizer = get_tokenizer(config.policy["tokenizer"])
    config.policy["generation"] = configure_generation_config(config.policy["generation"], tokenizer)

    def dataset(part: dict[str, Any] | None) -> Any:
        if part is None:
            return None
        longest, processors = config.data["max_input_seq_length"], {NAME: (TaskDataSpec(task_name=NAME), process)}
        rows = read_tasks(Path(part["data_path"]), longest)
        return AllTaskProcessedDataset(rows, tokenizer, None, processors, max_seq_length=longest)

    def environment(answers: str | None) -> Any:
        actor = ray.remote(TaskEnvironment).options(runtime_env={"py_executable": PY_EXECUTABLES.SYSTEM})
        return actor.remote({**config.env[NAME], "answers": answers})

    environments = {NAME: environment(config.env[NAME]["answers"])}, {NAME: environment(None)}
    policy, generation, _, _, loader, held_out, loss, logger, checkpoints, state, config, *_ = setup(
        config, tokenizer, dataset(config.data["train"]), dataset(config.data["validation"])
    )
    grpo_train(
        policy,
        generation,
        loader,
        held_out,
        WholeText(tokenizer),
        Loss(loss, ours["max_tokens"], ours["filter_groups"]),
        *environments,
        Watch(logger, ours["mismatch_tolerance"], ours["save_answers"]),
        checkpoints,
        state,
        config,
    )
    if state["total_steps"] >= config.grpo["max_num_steps"]:  # otherwise it was stopped in time
        best = checkpoints.get_best_checkpoint_path if ours["keep_best"] else checkpoints.get_latest_checkpoint_path
        Path(path).with_name(RESULT).write_text(str(best()))


def read_tasks(path: Path, longest: int) -> list[dict[str, Any]]:
    """The lines of a file that the stage `tasks` has left, without those with more tokens than `longest`."""
    with path.open(encoding="utf-8") as lines:
        tasks = [json.loads(line) for line in lines]
    return [{**task, "task_name": NAME} for task in tasks if len(task["ids"]) <= longest]


def process(task: dict[str, Any], spec: Any, tokenizer: Any, longest: int | None, index: int) -> dict[str, Any]:
    """A task as NeMo-RL's `DatumSpec`: its tokens, and the rest for the environment."""
    import torch

    ids = torch.tensor(task["ids"])
    return {
        "message_log": [{"role": "user", "content": task["prompt"], "token_ids": ids}],
        "length": len(ids),
        "extra_env_info": {name: value for name, value in task.items() if name not in ("ids", "task_name")},
        "loss_multiplier": 1.0,
        "idx": index,
        "task_name": task["task_name"],
    }


class WholeText:
    """A tokenizer that leaves nothing out when NeMo-RL decodes answers: their ends, and marks of tool calls, which are
    special to some tokenizers, are for the environment to see.

    Args:
        tokenizer: NeMo-RL's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Tokenise."""
        return self._tokenizer(*args, **named)

    def batch_decode(self, ids: Any, **_: Any) -> list[str]:
        """The text of each sequence of ids, whole."""
        return self._tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


class Watch:
    """NeMo-RL's logger, with an eye on what it is told.

    Args:
        logger: NeMo-RL's.
        tolerance: nats per token that the log-probabilities of vLLM and Megatron may differ by, in the mean.
        save_answers: whether NeMo-RL may write all tokens of every rollout.
    """

    def __init__(self, logger: Any, tolerance: float, save_answers: bool) -> None:
        self._logger, self._tolerance, self._save_answers = logger, tolerance, save_answers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)

    def log_metrics(self, metrics: dict[str, Any], *args: Any, **named: Any) -> None:
        """Hand them on, and stop where rollouts come from another model than the one that is trained.

        Raises:
            GateError: so they do.
        """
        self._logger.log_metrics(metrics, *args, **named)
        if (found := metrics.get("mismatch", 0.0)) > self._tolerance:
            raise GateError(
                f"grpo.mismatch_tolerance: what samples and what trains differ by {found:.4f} nats per token, "
                f"allowed: {self._tolerance}"
            )

    def log_batched_dict_as_jsonl(self, *args: Any, **named: Any) -> None:
        """Hand it on, where answers are kept."""
        if self._save_answers:
            self._logger.log_batched_dict_as_jsonl(*args, **named)


if __name__ == "__main__":
    main(sys.argv[1])
