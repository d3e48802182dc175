"""One finished run of the tiny chain per session, from which every other test starts by copying it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bielik_nemo import cli, config, pipeline
from bielik_nemo.artifacts import Manifest
from bielik_nemo.config import CHAIN, Config
from bielik_nemo.stages import GRAPH

sys.path.insert(0, str(Path(__file__).parent))  # for `import runs`

# Six steps, a checkpoint after every second, a measurement after every third.
SHORT = (
    "pipeline=compress",
    "trainer.max_steps=6",
    "trainer.checkpoint_every=2",
    "trainer.validate_every=3",
    "optim.warmup_steps=1",
    "data.held_out_tokens=1024",
    "evaluate.sample_tokens=4",
    "prune.calibration.samples=8",
    "prune.calibration.sources=[{path:builtin:package-docs}]",
)


@dataclass
class Chain:
    """A finished run and what it takes to run it again."""

    source: Path
    overrides: list[str]
    finished: Path
    secret: str
    made: Callable[[str], Path]
    stages: Sequence[str] = tuple(CHAIN)

    def config(self, run_dir: Path, *overrides: str) -> Config:
        return config.compose("tiny", [*self.overrides, f"run.dir='{run_dir}'", *overrides])

    def run(self, run_dir: Path, *overrides: str, stages: list[str] | None = None) -> None:
        pipeline.run(self.config(run_dir, *overrides), stages)

    def copy(self, name: str, before: str | None = None) -> Path:
        """A copy of the finished run, without the stage `before` and all after it."""
        run_dir = self.made(name) / name
        shutil.copytree(self.finished, run_dir)
        for stage in self.stages[self.stages.index(before) :] if before else ():
            shutil.rmtree(run_dir / stage)
        return run_dir

    def empty(self, name: str) -> Path:
        return self.made(name) / name

    @staticmethod
    def manifest(run_dir: Path, stage: str) -> Manifest:
        found = Manifest.read(run_dir / stage)
        assert found is not None, f"{run_dir / stage} has no manifest"
        return found

    @staticmethod
    def result(run_dir: Path, stage: str) -> dict[str, Any]:
        """Content of all that a stage leaves but what tells of time (rates, seconds, the id of a save) and memory."""
        found: dict[str, Any] = {}
        for name in Chain.manifest(run_dir, stage).outputs:
            path = run_dir / stage / name
            if path.name == "metrics.jsonl":
                records = [json.loads(line) for line in path.read_text().splitlines()]
                found[name] = [{k: v for k, v in r.items() if not re.search("second|memory", k)} for r in records]
            elif path.name != ".metadata":
                found[name] = path.read_bytes()
        assert {name.split("/")[0] for name in found} == set(GRAPH[stage].outputs)
        return found


@pytest.fixture(scope="session")
def chain(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The finished run; made with a secret in the environment, which must not be found in it."""
    found = Chain(
        source=tiny_hf,
        overrides=[f"model.source='{tiny_hf}'", *SHORT],
        secret="secret123",
        finished=tmp_path_factory.mktemp("finished") / "run",
        made=lambda name: tmp_path_factory.mktemp(name),
    )
    arguments = ["pipeline", "experiment=tiny", *found.overrides, f"run.dir='{found.finished}'"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", found.secret)
        assert cli.main(arguments) == 0
    return found


ALIGN = ["import_hf", "chat", "sft", "preferences", "reference", "dpo", "tasks", "grpo", "export", "evaluate"]
ALIGNED = (
    "pipeline.stages=[" + ",".join(ALIGN) + "]",
    *(f"{stage}.{setting}" for stage in ("sft", "dpo") for setting in ("seq_length=256", "max_steps=6")),
    *(f"{stage}.{setting}" for stage in ("sft", "dpo") for setting in ("warmup_steps=1", "recompute=none")),
    "sft.global_batch_size=2",
    "sft.lr=1e-3",
    "dpo.global_batch_size=4",
    "dpo.lr=1e-4",
    "chat.held_out_fraction=0.2",
    "chat.held_out_tokens=256",
    "chat.held_out_pairs=8",
    "chat.held_out_tasks=4",
    "grpo.max_steps=6",  # two of each rollout
    "grpo.prompts_per_rollout=4",
    "grpo.global_batch_size=2",
    "grpo.group_size=4",
    "grpo.warmup_steps=1",
    "grpo.rewards.workers=1",
)


@pytest.fixture(scope="session")
def aligned(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A finished run from conversations, pairs and tasks to an export, measured, without pruning and distillation.

    Six steps teach no sums: rewarded are short answers.
    """
    here = tmp_path_factory.mktemp("aligned")
    chats, pairs, tasks = here / "chats.jsonl", here / "pairs.jsonl", here / "tasks.jsonl"
    questions = [
        (f"Ile to jest {a} dodać {b}?", f"{a} + {b} = {a + b}.", a + b + 1) for a in range(8) for b in range(5)
    ]
    chat = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        for asked, answer, _ in questions
    ]
    pair = [{"prompt": asked, "chosen": answer, "rejected": f"Chyba {wrong}."} for asked, answer, wrong in questions]
    task = [{"prompt": asked, "answer": answer} for asked, answer, _ in questions]
    for path, lines in ((chats, chat), (pairs, pair), (tasks, task)):
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    sources = [f"sft.sources=[{{path:'{chats}',language:pl}}]", f"dpo.sources=[{{path:'{pairs}',language:pl}}]"]
    rewards = "[{function:bielik_nemo.align.rewards.length,options:{limit:2,most:20}}]"
    sources.append(f"grpo.sources=[{{path:'{tasks}',language:pl,rewards:{rewards}}}]")
    found = Chain(
        source=tiny_hf,
        overrides=[f"model.source='{tiny_hf}'", *SHORT, *ALIGNED, *sources],
        secret="",
        finished=here / "run",
        made=lambda name: tmp_path_factory.mktemp(name),
        stages=ALIGN,
    )
    pipeline.run(found.config(found.finished))
    return found
