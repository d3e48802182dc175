"""The runs of `ranks.py`, each done once per session: one process here, two for each other layout, and one killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `import ranks`
RANKS = Path(__file__).with_name("ranks.py")


class Results:
    """What one layout left: `results[case]`, and its files below `path`."""

    def __init__(self, path: Path, log: Path):
        self.path, self.log = path, log

    def __getitem__(self, case: str) -> Any:
        file = self.path / "results.json"
        found = json.loads(file.read_text()) if file.is_file() else {}
        if case not in found:
            pytest.fail(f"{self.path.name}: {case!r} did not finish; its log ends with\n{self.log.read_text()[-4000:]}")
        return found[case]

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """Records of a finished training run, without times and memory."""
        assert self[f"distill {name}"] == "done"
        lines = (self.path / name / "metrics.jsonl").read_text().splitlines()
        timed = {"seconds", "tokens_per_second", "peak_memory_gib"}
        return [{key: value for key, value in json.loads(line).items() if key not in timed} for line in lines]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, random_hf: Callable[[str], Path]) -> Path:
    """Every random checkpoint, a tokenizer that pads with its end-of-text token, and datasets of random tokens."""
    from bielik_nemo.data import tiny
    from bielik_nemo.engine import datasets

    base = tmp_path_factory.mktemp("inputs")
    for kind in random_hf.kinds:
        (base / kind).symlink_to(random_hf(kind))
    tokenizer = tiny.byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(base / "tokenizer")
    draw = random.Random(0)
    (base / "held_out").mkdir()
    for name in ("train", "held_out/text", "other"):
        lengths = [draw.randint(20, 300) for _ in range(40)]
        documents = [[*(draw.randrange(256) for _ in range(n)), tokenizer.eos_token_id] for n in lengths]
        datasets.write(base / name, documents, vocab_size=263)
    for name in ("train", "held_out"):
        _conversations(base / "chat" / name, draw)
    sources = [{"name": name, "language": name[:2]} for name in ("pl.jsonl", "en.jsonl")]
    (base / "chat" / "summary.json").write_text(json.dumps({"sources": sources}))
    _pairs(base / "preferences")
    return base


def _conversations(directory: Path, draw: random.Random) -> None:
    """Twelve of random tokens, of 20, 7 and 4 predictions, so that four sequences of 32 have one position left each.

    The second half of each is trained; of one source at 1 or 0.5, of the other at 0.7.
    """
    import numpy as np
    from safetensors.numpy import save_file

    from bielik_nemo.engine import labelled

    directory.mkdir(parents=True)
    lengths = [[20, 7, 4, 7, 20, 4, 4], [7, 20, 20, 4, 7]]
    for name, each in zip(("00000", "00001"), lengths, strict=True):
        with labelled.writer(directory / name, 263) as add:
            for n in each:
                add([draw.randrange(256) for _ in range(n + 1)], [place > n // 2 for place in range(n + 1)])
    weights = {"00000": np.array([100, 50, 50, 100, 100, 50, 100], np.uint8), "00001": np.full(5, 70, np.uint8)}
    save_file(weights, directory / "weights.safetensors")


def _pairs(directory: Path) -> None:
    """Random prompts of up to 5 tokens with a chosen and a rejected answer of up to 12."""
    from bielik_nemo.engine import labelled

    draw = random.Random(0)
    for name, count in (("train/00000", 24), ("train/00001", 16), ("held_out/00000", 6)):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        with labelled.writer(directory / name, 263) as add:
            for _ in range(count):
                prompt = [draw.randrange(256) for _ in range(draw.randint(1, 5))]
                for _ in ("chosen", "rejected"):
                    answer = [draw.randrange(256) for _ in range(draw.randint(1, 12))]
                    add(prompt + answer, [False] * len(prompt) + [True] * len(answer))


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all layouts leave their files."""
    return tmp_path_factory.mktemp("out")


def _here(inputs: Path, out: Path, work: str) -> Results:
    import ranks

    layout, parts = work.split(":")
    log = out / f"{layout}.log"
    for part in parts.split(","):
        try:
            ranks.main(str(inputs), str(out), f"{layout}:{part}")
        except Exception:
            log.write_text(traceback.format_exc())
    return Results(out / layout, log)


def _processes(inputs: Path, out: Path, count: int, *work: str) -> Path:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    command = [sys.executable, *launcher, str(RANKS), str(inputs), str(out), *work]
    log = out / f"{'+'.join(item.replace(':', '-').replace(',', '-') for item in work)}.log"
    with (
        open(log, "w") as stream,
        subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
    ):
        try:
            process.wait(timeout=500)
        except subprocess.TimeoutExpired:  # a rank waits for another: the cases that did not finish say so
            process.terminate()
    return log


@pytest.fixture(scope="session")
def single(inputs: Path, out: Path) -> Results:
    """One process, this one."""
    return _here(
        inputs,
        out,
        "single:convert,forward,rollout,minitron,compensate,importance,train,splits,recomputed,separated,teach,cached,compared,"
        "harness,pretrain,sft,unpacked,lora,refer,prefer,online,refused,policy,policies,mismatched,failing",
    )


@pytest.fixture(scope="session")
def tp2(inputs: Path, out: Path, single: Results) -> Results:
    """Two processes that share every layer; their runs `stopped` and `resumed` were stopped and killed before."""
    _processes(inputs, out, 2, "tp2:stopped,killed")
    for other in ("single", "pp2"):
        shutil.copytree(out / "tp2" / "resumed", out / other / "moved")
    work = "tp2:convert,forward,rollout,train,recomputed,separated,resumed,teach,cached,pretrain,"
    work += "sft,lora,refer,prefer,refused,policy,harness"
    return Results(out / "tp2", _processes(inputs, out, 2, work))


@pytest.fixture(scope="session")
def pp2(inputs: Path, out: Path, tp2: Results) -> Results:
    """Two processes with half of the layers each; they read what those of tp2 wrote."""
    work = "pp2:convert,reshard,forward,rollout,minitron,compensate,importance,train,separated,teach,cached,pretrain,"
    work += "moved,sft,lora,refer,prefer,refused,policy"
    return Results(out / "pp2", _processes(inputs, out, 2, work))


@pytest.fixture(scope="session")
def dp2(inputs: Path, out: Path, single: Results) -> Results:
    """Two processes with a copy of the model each."""
    return Results(
        out / "dp2", _processes(inputs, out, 2, "dp2:train,separated,teach,cached,pretrain,sft,refer,prefer,policy")
    )


@pytest.fixture(scope="session")
def pp4(inputs: Path, out: Path, single: Results) -> Results:
    """Four processes with a layer each, two of them neither first nor last."""
    return Results(out / "pp4", _processes(inputs, out, 4, "pp4:packed"))


@pytest.fixture(scope="session")
def resharded(inputs: Path, out: Path, tp2: Results, pp2: Results) -> Results:
    """One process that reads what two wrote."""
    return _here(inputs, out, "single:reshard,moved")


@pytest.fixture(scope="session")
def resumed(inputs: Path, out: Path, single: Results) -> Results:
    """One process that goes on where another was stopped and killed, also while it wrote a checkpoint."""
    _processes(inputs, out, 1, "single:stopped,killed")
    _processes(inputs, out, 1, "single:dying")
    shutil.copytree(out / "single" / "resumed", out / "single" / "damaged")
    _processes(inputs, out, 1, "single:killed_saving")
    return _here(inputs, out, "single:resumed,damaged,asynchronous,revived")


@pytest.fixture
def layout(request: pytest.FixtureRequest) -> Results:
    """The results of the layout that `@pytest.mark.parametrize("layout", [...], indirect=True)` names."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def llama(inputs: Path) -> Iterator[tuple[Any, Any]]:
    """A Megatron model of the kind `llama` and its architecture, laid out for one process while the test runs."""
    from bielik_nemo.architecture import Architecture
    from bielik_nemo.engine import convert, distributed, model

    a = Architecture.from_hf(inputs / "llama")
    with distributed.model_parallel():
        megatron = model.build(model.gpt_config(a, seq_length=128), a)
        convert.load_hf(megatron, inputs / "llama", a)
        yield megatron, a
