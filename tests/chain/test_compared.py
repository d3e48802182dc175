"""Models that are not the pipeline's, measured beside its own: a Hugging Face directory, a stage, another tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from bielik_nemo.engine import datasets


def swapped(tiny_hf: Path, directory: Path) -> Path:
    """The tiny model with its bytes numbered the other way round: other ids for the same words."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_hf, directory)
    content = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {word: 255 - token if token < 256 else token for word, token in vocabulary.items()}
    (directory / "tokenizer.json").write_text(json.dumps(content))
    tensors = load_file(directory / "model.safetensors")
    rows = torch.tensor([*range(255, -1, -1), *range(256, 263)])
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][rows].contiguous()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def measured(chain, tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run_dir = chain.copy("compared", before="evaluate")
    models = {"same": tiny_hf, "student": chain.finished / "distill"}
    models["reversed"] = swapped(tiny_hf, tmp_path_factory.mktemp("swapped") / "hf")
    named = ",".join(f"{{name:{name},path:'{path}'}}" for name, path in models.items())
    chain.run(run_dir, f"evaluate.models=[{named}]", "evaluate.agreement_tokens=512")
    return json.loads((run_dir / "evaluate" / "metrics.json").read_text())


def test_the_same_model_from_elsewhere_is_measured_alike(measured):
    loss, bits = measured["held_out_loss"], measured["bits_per_byte"]
    assert loss["same"] == pytest.approx(loss["source"], rel=1e-6) and loss["student"] == loss["distilled"]
    assert bits["same"] == pytest.approx(bits["source"], rel=1e-6) and bits["student"] == bits["distilled"]
    assert measured["agreement"]["same"] == {"kl": pytest.approx(0, abs=1e-7), "top1": 1, "tokens": 512}
    assert measured["agreement"]["student"] == measured["agreement"]["distilled"]
    assert "source" not in measured["agreement"]
    for sample in measured["samples"]:
        assert sample["same"] == sample["source"] and sample["student"] == sample["distilled"]


def test_another_tokenizer_is_measured_on_the_same_text(measured):
    """The numbers of the words do not matter, as long as they are its own; losses per token would not compare."""
    assert measured["bits_per_byte"]["reversed"] == pytest.approx(measured["bits_per_byte"]["source"], rel=1e-6)
    assert "reversed" not in measured["held_out_loss"] and "reversed" not in measured["agreement"]
    assert all(sample["reversed"] == sample["source"] for sample in measured["samples"])


def test_bits_per_byte_of_single_bytes(measured, chain):
    """Every token of the tiny model but the end of a document is one byte."""
    import math

    blocks = datasets.blocks(chain.finished / "data" / "held_out" / "text", 128, 1024)[:, 1:]
    size = int((blocks < 256).sum())
    for name, loss in measured["held_out_loss"].items():
        assert measured["bits_per_byte"][name] == pytest.approx(loss * blocks.numel() / math.log(2) / size)


def test_agreement_is_that_of_plain_transformers(measured, chain, tiny_hf: Path):
    """KL(source || distilled) in float64 over 4 blocks of 128 predictions, and the share of equal likeliest words."""
    from transformers import AutoModelForCausalLM

    blocks = datasets.blocks(chain.finished / "data" / "held_out" / "text", 128, 512)[:, :-1]
    with torch.no_grad():
        source, student = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)(blocks).logits
            for path in (tiny_hf, chain.finished / "export" / "hf")
        )
    kl = torch.nn.functional.kl_div(student.log_softmax(-1), source.log_softmax(-1), log_target=True, reduction="sum")
    found = measured["agreement"]["distilled"]
    assert found["kl"] == pytest.approx(kl.item() / 512, rel=1e-4)
    assert found["top1"] == pytest.approx((source.argmax(-1) == student.argmax(-1)).double().mean().item(), abs=2 / 512)
    assert 0 < found["kl"] and found["tokens"] == 512
