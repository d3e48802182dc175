"""What is handed to NeMo-RL, with stand-ins for it; that its names are those, from a checkout."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import upstream
import yaml

from bielik_nemo.align.nemo_rl import run
from bielik_nemo.align.nemo_rl.environment import TaskEnvironment
from bielik_nemo.align.nemo_rl.loss import Loss
from bielik_nemo.align.nemo_rl.run import Watch, WholeText, main, process, read_tasks
from bielik_nemo.errors import GateError

GOLDEN = Path(__file__).with_name("config.yaml")


def line(number: int, tokens: int) -> dict[str, Any]:
    place = {"source": 0, "place": f"a.jsonl:{number}"}
    return {**place, "ids": [*range(tokens)], "prompt": "ile?", "answer": "4", "language": "", "tools": []}


@pytest.fixture
def ray(monkeypatch) -> list[tuple[type, dict, dict]]:
    """A stand-in for Ray; the actors that were started, with their options and settings."""
    started: list[tuple[type, dict, dict]] = []

    def remote(cls: type) -> SimpleNamespace:
        def options(**chosen: Any) -> SimpleNamespace:
            return SimpleNamespace(remote=lambda settings: started.append((cls, chosen, settings)) or len(started))

        return SimpleNamespace(options=options)

    module = ModuleType("ray")
    module.remote = remote
    monkeypatch.setitem(sys.modules, "ray", module)
    return started


def test_what_nemo_rl_gets(nemo_rl, ray, tmp_path):
    settings = yaml.safe_load(GOLDEN.read_text(encoding="utf-8"))
    settings["bielik_nemo"] |= {"max_tokens": 7, "filter_groups": True}
    for part, lengths in (("train", (3, 5000, 4)), ("validation", (2,))):
        file = tmp_path / f"{part}.jsonl"
        file.write_text("".join(json.dumps(line(*each)) + "\n" for each in enumerate(lengths)))
        settings["data"][part]["data_path"] = str(file)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    main(str(tmp_path / "config.yaml"))

    policy, generation, loader, held_out, tokenizer, loss, train, measure, logger, saves, state, config = (
        nemo_rl.trained
    )
    assert (policy, generation, loader, held_out) == ("policy", "generation", "loader", "held out")
    assert (saves, state) == (nemo_rl.checkpoints, nemo_rl.state)
    assert isinstance(tokenizer, WholeText)
    assert tokenizer._tokenizer == f"tokenizer of {settings['policy']['model_name']}"
    assert config.policy["generation"]["configured"]
    assert not hasattr(config, "bielik_nemo")
    assert isinstance(loss, Loss) and (loss.max_tokens, loss.filter_groups) == (7, True)
    assert isinstance(logger, Watch)
    assert (train, measure) == ({"bielik_nemo": 1}, {"bielik_nemo": 2})
    assert [each[0] for each in ray] == [TaskEnvironment] * 2
    assert ray[0][2] == settings["env"]["bielik_nemo"]
    assert ray[1][2]["answers"] is None  # of what is held out none are kept
    tasks, few = nemo_rl.setup
    assert [task["length"] for task in (tasks[0], tasks[1])] == [3, 4]  # the prompt of 5000 is too long
    assert len(few) == 1


@pytest.mark.parametrize(("best", "named"), [(False, "checkpoints/step_4"), (True, "checkpoints/step_2")])
def test_names_the_result_when_all_is_done(nemo_rl, ray, tmp_path, best, named):
    settings = yaml.safe_load(GOLDEN.read_text(encoding="utf-8"))
    settings["bielik_nemo"]["keep_best"] = best
    settings["grpo"]["max_num_steps"] = 4
    (tmp_path / "tasks.jsonl").write_text("")
    for part in ("train", "validation"):
        settings["data"][part]["data_path"] = str(tmp_path / "tasks.jsonl")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    nemo_rl.state["total_steps"] = 3
    main(str(tmp_path / "config.yaml"))
    assert not (tmp_path / "result").exists()
    nemo_rl.state["total_steps"] = 4
    main(str(tmp_path / "config.yaml"))
    assert (tmp_path / "result").read_text() == named


def test_a_task_in_nemo_rls_words(tmp_path):
    (tmp_path / "tasks.jsonl").write_text(json.dumps(line(1, 3)) + "\n")
    (task,) = read_tasks(tmp_path / "tasks.jsonl", 3)
    found = process(task, None, None, 3, 8)
    (turn,) = found.pop("message_log")
    assert turn["token_ids"].tolist() == [0, 1, 2]
    assert (turn["role"], turn["content"]) == ("user", "ile?")
    told = {"source": 0, "place": "a.jsonl:1", "prompt": "ile?", "answer": "4", "language": "", "tools": []}
    assert found == {
        "length": 3,
        "extra_env_info": told,
        "loss_multiplier": 1.0,
        "idx": 8,
        "task_name": "bielik_nemo",
    }


def test_answers_are_decoded_whole():
    """As NeMo-RL's rollouts ask for it, which would leave out what is special."""
    asked = []
    plain = SimpleNamespace(batch_decode=lambda ids, **named: asked.append((ids, named)) or ["a"], pad_token_id=3)
    assert WholeText(plain).batch_decode([[1]], skip_special_tokens=True) == ["a"]
    assert asked == [([[1]], {"skip_special_tokens": False, "clean_up_tokenization_spaces": False})]
    assert WholeText(plain).pad_token_id == 3
    assert WholeText(len)("abc") == 3


def test_asks_little_of_the_container():
    """NeMo-RL's container has torch and numpy; of what it has not, only pebble is needed before a reward is."""
    program = "import sys, bielik_nemo.align.nemo_rl.run; print(*{name.partition('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    ours = {"nemo", "nemo_run", "megatron", "modelopt", "lightning", "transformers", "hydra", "omegaconf", "jsonschema"}
    assert not ours & set(found.stdout.split())


class Logger:
    """What it was told."""

    def __init__(self) -> None:
        self.metrics, self.files, self.log_dir = [], [], "logs"

    def log_metrics(self, metrics: dict[str, float], step: int, prefix: str = "") -> None:
        self.metrics.append((metrics, step, prefix))

    def log_batched_dict_as_jsonl(self, values: dict, name: str) -> None:
        self.files.append(name)


def test_watches_over_the_mismatch():
    logger = Logger()
    watch = Watch(logger, 0.02, save_answers=True)
    watch.log_metrics({"mismatch": 0.02}, 1, prefix="train")
    watch.log_metrics({"accuracy": 1.0}, 1, prefix="validation")
    with pytest.raises(GateError, match=r"grpo.mismatch_tolerance: .* 0\.0300 nats per token, allowed: 0\.02"):
        watch.log_metrics({"mismatch": 0.03}, 2, prefix="train")
    assert [each[0] for each in logger.metrics] == [{"mismatch": 0.02}, {"accuracy": 1.0}, {"mismatch": 0.03}]
    assert watch.log_dir == "logs"  # it has all that the logger has


@pytest.mark.parametrize(("save", "files"), [(True, ["train_data_step1.jsonl"]), (False, [])])
def test_nemo_rl_keeps_answers_only_where_they_are_wanted(save, files):
    logger = Logger()
    Watch(logger, 0.02, save).log_batched_dict_as_jsonl({}, "train_data_step1.jsonl")
    assert logger.files == files


def test_the_names_in_the_docstring_are_those_that_are_imported(nemo_rl):
    """And the stand-ins have no others."""
    imported = set()
    for file in ("run.py", "environment.py"):
        for node in ast.walk(ast.parse(Path(run.__file__).with_name(file).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("nemo_rl"):
                imported |= {(node.module.replace(".", "/"), name.name) for name in node.names}
    listed = re.findall(r"^ {4}(nemo_rl\S+?)(?:\.py)? +(\w.*)$", run.__doc__, re.M)
    assert imported == {(module, name) for module, names in listed for name in names.split(", ")}
    stood_in = {
        (f"nemo_rl/{module.replace('.', '/')}", name) for module, names in nemo_rl.names.items() for name in names
    }
    assert imported == stood_in


@upstream.needed
def test_nemo_rl_has_these_names(nemo_rl):
    for module, names in nemo_rl.names.items():
        path = Path(upstream.CHECKOUT) / "nemo_rl" / module.replace(".", "/")
        text = (path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py").read_text()
        for name in names:
            assert re.search(rf"^(class|def) {name}\b|^\s+{name},$|import .*\b{name}\b", text, re.M), (module, name)


@upstream.needed
def test_nemo_rl_takes_and_returns_what_run_takes_and_gives():
    tree = ast.parse((Path(upstream.CHECKOUT) / "nemo_rl/algorithms/grpo.py").read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert [each.arg for each in functions["setup"].args.args][:4] == [
        "master_config",
        "tokenizer",
        "dataset",
        "val_dataset",
    ]
    returned = next(node.value.elts for node in functions["setup"].body if isinstance(node, ast.Return))
    names = (
        "policy policy_generation nemo_gym_actor train_cluster dataloader val_dataloader loss_fn logger checkpointer"
    )
    names += " grpo_save_state master_config"
    first = [each.elts[0] if isinstance(each, ast.Tuple) else each for each in returned]
    assert [each.id for each in first][:11] == names.split()
    given = "policy policy_generation wrapped_dataloader val_dataloader tokenizer loss_fn task_to_env val_task_to_env"
    given += " logger checkpointer grpo_save_state master_config"
    assert [each.arg for each in functions["grpo_train"].args.args] == given.split()
    assert 'grpo_save_state["total_steps"] = total_steps + 1' in ast.unparse(tree).replace("'", '"')
    saves = (Path(upstream.CHECKOUT) / "nemo_rl/utils/checkpoint.py").read_text()
    assert all(f"def get_{which}_checkpoint_path(self)" in saves for which in ("best", "latest"))
    text = (Path(upstream.CHECKOUT) / "nemo_rl/experience/rollouts.py").read_text()
    assert "tokenizer.batch_decode(generated_ids, skip_special_tokens=True)" in text
