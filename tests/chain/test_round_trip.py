"""Import and export alone, of checkpoints without a tokenizer: every weight comes back bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from bielik_nemo import cli

ALONE = "pipeline.stages=[import_hf,export]"


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(directory, dtype="auto").state_dict()


def assert_same_weights(one: Path, other: Path) -> None:
    before, after = weights(one), weights(other)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name


@pytest.mark.parametrize("kind", ["llama", "tied", "mistral", "qwen2", "bf16"])
def test_a_model_without_a_tokenizer(kind: str, random_hf: Callable[[str], Path], tmp_path: Path):
    source, run_dir = random_hf(kind), tmp_path / "run"
    dtype = "bfloat16" if kind == "bf16" else "float32"
    arguments = [f"model.source='{source}'", f"model.dtype={dtype}", ALONE, f"run.dir='{run_dir}'"]
    assert cli.main(["pipeline", *arguments]) == 0
    hf = run_dir / "export" / "hf"
    assert_same_weights(source, hf)
    assert not any(path.name.startswith(("tokenizer", "vocab")) for path in hf.iterdir())
    assert (run_dir / "report.html").is_file()
    parity = json.loads((run_dir / "export" / "parity.json").read_text())
    assert 0 <= parity["max_abs_logit_diff"] <= parity["tolerance"] == 1e-4 and parity["tokens"] == 512


def test_the_tokenizer_goes_along(tiny_hf: Path, tmp_path: Path):
    arguments = [f"model.source='{tiny_hf}'", ALONE, f"run.dir='{tmp_path}/run'", "export.max_shard_gib=0.0005"]
    assert cli.main(["pipeline", *arguments]) == 0
    hf = tmp_path / "run" / "export" / "hf"
    assert_same_weights(tiny_hf, hf)
    assert len(list(hf.glob("*.safetensors"))) > 1
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (hf / name).read_bytes() == (tiny_hf / name).read_bytes()


def test_text_of_another_model_in_the_run_directory_is_not_used(chain, random_hf, tmp_path: Path):
    """The run directory holds tokens up to 262 of an earlier run; this model has only 256."""
    run_dir = chain.copy("other")
    arguments = [f"model.source='{random_hf('sharded')}'", ALONE, f"run.dir='{run_dir}'"]
    assert cli.main(["pipeline", *arguments]) == 0
    assert_same_weights(random_hf("sharded"), run_dir / "export" / "hf")


def test_the_exported_student_works_in_plain_transformers(chain):
    """It loads with no code of ours, continues text, and has the pruned shape."""
    from transformers import AutoTokenizer

    hf = chain.finished / "export" / "hf"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(hf), AutoTokenizer.from_pretrained(hf)
    assert (model.config.num_hidden_layers, model.config.intermediate_size, model.config.head_dim) == (3, 96, 32)
    prompt = tokenizer("The package ", return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert ids.shape == (1, prompt["input_ids"].shape[1] + 4)


def test_no_secret_of_the_environment_is_written(chain):
    """The run was made with a token in the environment."""
    files = [path for path in chain.finished.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert [path for path in files if chain.secret.encode() in path.read_bytes()] == []


def test_a_run_directory_can_be_moved(chain, capfd: pytest.CaptureFixture[str]):
    moved = Path(shutil.copytree(chain.finished, chain.empty("moved")))
    chain.run(moved)
    assert capfd.readouterr().err.count("done before") == 7
