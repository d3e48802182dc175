"""A student that was cut elsewhere, taken as it is: here the finished run's own, which goes on learning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bielik_nemo.errors import ConfigError, DataError

STAGES = ["prune", "distill", "evaluate"]


@pytest.fixture
def student(chain, tmp_path: Path) -> Path:
    return Path(shutil.copytree(chain.finished / "export" / "hf", tmp_path / "student"))


def given(student: Path) -> tuple[str, str]:
    return f"prune.student='{student}'", "prune=none"


def test_it_starts_where_the_given_student_stands(chain, student):
    run_dir = chain.copy("given", before="prune")
    chain.run(run_dir, *given(student), stages=STAGES)
    before, after = (chain.result(d, "evaluate")["metrics.json"] for d in (chain.finished, run_dir))
    before, after = json.loads(before)["held_out_loss"], json.loads(after)["held_out_loss"]
    assert after["source"] == before["source"]
    assert after["pruned"] == pytest.approx(before["distilled"], abs=1e-5)
    assert after["distilled"] != after["pruned"]
    assert {name.split("/")[0] for name in chain.manifest(run_dir, "prune").outputs} == {
        "megatron",
        "architecture.json",
    }
    # Another student under the same path is another result.
    weights = next(student.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    with pytest.raises(DataError, match="distill needs prune, which has not finished"):
        chain.run(run_dir, *given(student), stages=["distill"])


def test_another_tokenizer_is_refused_before_the_first_step(chain, student):
    """Two words have changed places; every file loads, and every loss would be of the wrong words."""
    tokenizer = json.loads((student / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (student / "tokenizer.json").write_text(json.dumps(tokenizer))
    run_dir = chain.copy("swapped", before="prune")
    with pytest.raises(DataError, match=r"another tokenizer than the teacher's, 2 words differ \('a': 98"):
        chain.run(run_dir, *given(student), stages=STAGES)
    assert not (run_dir / "distill").exists() and not (run_dir / "prune" / "manifest.json").exists()


def test_another_vocabulary_is_refused_before_anything_runs(chain, student):
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))  # padded to the same 384 columns
    with pytest.raises(ConfigError, match=r"prune\.student: found vocab_size 300 .* allowed: the source model's 263"):
        chain.run(chain.copy("vocabulary", before="prune"), *given(student), stages=STAGES)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["prune.student=/not/there", "prune=none"], "prune.student: /not/there"),
        (["prune.student=/s"], r"prune\.student: found '/s', allowed: none with prune\.target \(prune=none\)"),
        (["prune.student=/s", "prune=none", "prune.streaming=true"], "none with prune.streaming"),
        (["prune.student=/s", "prune=none", "prune.drop_layers=[1]"], "none with prune.drop_layers"),
    ],
)
def test_what_contradicts_a_given_student(overrides, named, chain):
    with pytest.raises(ConfigError, match=named):
        chain.run(chain.copy("contradicted", before="prune"), *overrides, stages=STAGES)
