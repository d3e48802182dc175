"""Stand-ins of the few names of NeMo-RL that are imported."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `import upstream`


class Returned(NamedTuple):
    """NeMo-RL's `EnvironmentReturn`."""

    observations: Any
    metadata: Any
    next_stop_strings: Any
    rewards: Any
    terminateds: Any
    answers: Any


class Tasks:
    """NeMo-RL's `AllTaskProcessedDataset`, whose tasks have the processor and specification of their name."""

    def __init__(self, rows, tokenizer, default, processors, *, max_seq_length):
        self.rows, self.tokenizer, self.processors, self.longest = rows, tokenizer, processors, max_seq_length

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        spec, process = self.processors[self.rows[index]["task_name"]]
        return process(self.rows[index], spec, self.tokenizer, self.longest, index)


@pytest.fixture
def nemo_rl(monkeypatch) -> SimpleNamespace:
    """Modules of NeMo-RL with what run.py and environment.py import; `trained` gets the arguments of `grpo_train`."""
    found = SimpleNamespace(logged=[], written=[], trained=None, setup=None, state={"total_steps": 0})
    found.checkpoints = SimpleNamespace(
        get_best_checkpoint_path=lambda: "checkpoints/step_2", get_latest_checkpoint_path=lambda: "checkpoints/step_4"
    )
    theirs = SimpleNamespace(loss_type="token", input_type="log-probabilities", reference_policy_kl_penalty=0.0)
    logger = SimpleNamespace(
        log_metrics=lambda metrics, *args, **named: found.logged.append(metrics),
        log_batched_dict_as_jsonl=lambda *args: found.written.append(args),
    )

    def setup(config, tokenizer, train, held_out):
        found.setup = train, held_out
        return (
            "policy",
            "generation",
            None,
            None,
            "loader",
            "held out",
            theirs,
            logger,
            found.checkpoints,
            found.state,
            config,
            {},
            {},
        )

    def train(*given):
        found.trained = given

    names = {
        "algorithms.grpo": {
            "MasterConfig": lambda **all_: SimpleNamespace(**all_),
            "setup": setup,
            "grpo_train": train,
        },
        "algorithms.utils": {"get_tokenizer": lambda config: f"tokenizer of {config['name']}"},
        "data.datasets": {"AllTaskProcessedDataset": Tasks},
        "data.interfaces": {"TaskDataSpec": lambda task_name: task_name},
        "distributed.virtual_cluster": {
            "init_ray": lambda: None,
            "PY_EXECUTABLES": SimpleNamespace(SYSTEM="python"),
        },
        "environments.interfaces": {"EnvironmentReturn": Returned},
        "models.generation": {"configure_generation_config": lambda config, tokenizer: {**config, "configured": True}},
    }
    for name, inside in names.items():
        parts = name.split(".")
        for depth in range(len(parts) + 1):
            path = ".".join(["nemo_rl", *parts[:depth]])
            if path not in sys.modules:
                module = ModuleType(path)
                module.__path__ = []
                monkeypatch.setitem(sys.modules, path, module)
        vars(sys.modules[f"nemo_rl.{name}"]).update(inside)
    found.names = {name: list(inside) for name, inside in names.items()}
    return found
