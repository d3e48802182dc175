"""The way to another tokenizer on the tiny model: swap, adapt, train the whole model, export."""

from __future__ import annotations

import json
import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_whole
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bielik_nemo.architecture import Architecture
from bielik_nemo.data import focus
from bielik_nemo.data.text import PACKAGE_DOCS, read_documents
from bielik_nemo.data.tokenizer import open_tokenizer
from bielik_nemo.errors import DataError, Stopped

for _name in ("gensim", "entmax"):
    pytest.importorskip(_name, reason=f"{_name} is not installed: pip install 'bielik_nemo[tokenizer]'")

STAGES = ["import_hf", "swap_tokenizer", "data", "adapt", "pretrain", "export"]
SETTINGS = (
    f"pipeline.stages=[{','.join(STAGES)}]",
    "swap_tokenizer.tokenizer=builtin:tiny_bpe",
    "swap_tokenizer.tokens=100000",
    "data.global_batch_size=2",
    "adapt.boundary_layers=1",
    *(f"{stage}.{setting}" for stage in ("adapt", "pretrain") for setting in ("max_steps=6", "warmup_steps=0")),
    "adapt.lr=1e-3",
    "adapt.min_lr=1e-4",
    "trainer.keep_best=false",
)


@pytest.fixture(scope="module")
def swapped(chain) -> Path:
    """A finished run."""
    run_dir = chain.empty("swapped")
    chain.run(run_dir, *SETTINGS)
    return run_dir


def megatron(stage: Path) -> dict[str, torch.Tensor]:
    """The tensors of what a stage has left, by Megatron's names."""
    from bielik_nemo.engine import checkpoint, distributed, model

    a = Architecture.from_json(stage / "architecture.json")
    with distributed.model_parallel():
        built = model.build(model.gpt_config(a), a)
        checkpoint.load(built, stage / "megatron")
        return {name: value.detach().clone() for name, value in built.named_parameters()}


def test_the_new_vocabulary_is_everywhere(swapped, chain):
    found = chain.manifest(swapped, "swap_tokenizer").metrics
    assert found["copied"] == 263 and found["mixed"] > 500
    assert found["copied"] + found["mixed"] + found["drawn"] == 1024 and found["parity"] < 1e-4
    assert json.loads((swapped / "export" / "hf" / "config.json").read_text())["vocab_size"] == 1024
    tokenizer = open_tokenizer(swapped / "export" / "hf")
    assert len(tokenizer) == 1024 and tokenizer.chat_template
    assert chain.manifest(swapped, "export").metrics["model"] == "pretrain"
    assert chain.manifest(swapped, "data").metrics["train"]["tokens"] < 1e6  # bytes are more
    assert_whole(swapped)


def test_what_is_frozen_stays_bit_for_bit_and_what_is_trained_changes(swapped):
    """Of 4 layers the first and the last, and both matrices."""
    before, after = (megatron(swapped / stage) for stage in ("swap_tokenizer", "adapt"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    ends = (".layers.0.", ".layers.3.")
    trained = {name for name in before if not name.startswith("decoder.") or any(end in name for end in ends)}
    assert changed == trained and len(trained) < len(before)
    last = megatron(swapped / "pretrain")
    assert all(not torch.equal(after[name], last[name]) for name in before)  # the second stage trains everything


def test_both_stages_learn(swapped, chain):
    adapted, trained = (chain.manifest(swapped, stage).metrics for stage in ("adapt", "pretrain"))
    assert adapted["held_out_loss"] < adapted["held_out_loss_before"]
    assert trained["held_out_loss_before"] == pytest.approx(adapted["held_out_loss"], rel=1e-5)
    blend = json.loads((swapped / "adapt" / "blend.json").read_text())
    assert blend["sources"][0]["samples"] == 12


def test_an_interrupted_adapt_goes_on_as_if_it_had_not_been(swapped, chain, monkeypatch: pytest.MonkeyPatch):
    """The signal comes while step 3 of 6 is measured; the optimizer's state is that of the outermost layers alone."""
    from bielik_nemo.engine.datasets import HeldOut

    run_dir = chain.empty("interrupted") / "run"
    shutil.copytree(swapped, run_dir, ignore=shutil.ignore_patterns("adapt", "pretrain", "export"))
    measure, calls = HeldOut.measure, []

    def interrupted(self: HeldOut, *given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return measure(self, *given)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(HeldOut, "measure", interrupted)
        chain.run(run_dir, *SETTINGS, stages=["adapt"])
    assert list((run_dir / "adapt" / "checkpoints").iterdir())
    chain.run(run_dir, *SETTINGS, stages=["adapt"])
    records = map(json.loads, (run_dir / "adapt" / "metrics.jsonl").read_text().splitlines())
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4, 5, 6]
    first, again = (megatron(each / "adapt") for each in (swapped, run_dir))
    assert all(torch.equal(first[name], again[name]) for name in first)


def bits_per_byte(directory: Path) -> float:
    """Of 20 documents' beginnings, by plain transformers."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), open_tokenizer(directory)
    nats = size = 0.0
    for document in list(read_documents(PACKAGE_DOCS))[:20]:
        ids = torch.tensor([tokenizer(document.text[:800], add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            nats += float(model(input_ids=ids, labels=ids).loss) * (ids.numel() - 1)
        size += len(document.text[:800].encode())
    return nats / size / math.log(2)


def test_focus_begins_better_than_chance(swapped, chain, tmp_path: Path):
    """Against new rows that are all drawn, with the shared ones copied too; both as they are before any training."""
    from bielik_nemo.engine import vocabulary
    from bielik_nemo.stages import swap_tokenizer

    config, source = chain.config(swapped, *SETTINGS), chain.source
    words = swapped / "swap_tokenizer" / "tokenizer"
    before, after = Architecture.from_hf(source), Architecture.from_json(swapped / "adapt" / "architecture.json")
    planned = swap_tokenizer.plan(config, open_tokenizer(words), open_tokenizer(source), 1024, before.vocab_size)
    everything = torch.cat([planned.mixed, planned.drawn])
    chance = replace(planned, mixed=planned.mixed[:0], weights=torch.zeros(0, 263).to_sparse(), drawn=everything)
    for name, each in (("focus", planned), ("chance", chance)):
        vocabulary.swap(source, tmp_path / name, before, after, each, words, "float32", config.run.seed)
    measured = {name: bits_per_byte(tmp_path / name) for name in ("focus", "chance")}
    assert measured["focus"] < 0.95 * measured["chance"]
    made = load_file(tmp_path / "focus" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(made, megatron(swapped / "swap_tokenizer")["embedding.word_embeddings.weight"][:1024])


def test_tied_embeddings_are_one_matrix(random_hf, tmp_path: Path):
    """Old ids 0 and 1 become new ids 1 and 0; new id 2 is drawn."""
    from bielik_nemo.engine import vocabulary

    source = random_hf("tied")
    before = Architecture.from_hf(source)
    after = replace(before, vocab_size=3)
    copied = torch.tensor([[0, 1], [1, 0]])
    planned = focus.Plan(3, copied, copied[0, :0], torch.zeros(0, 512).to_sparse(), torch.tensor([2]))
    vocabulary.swap(source, tmp_path / "new", before, after, planned, tmp_path, "float32", seed=1)
    old, new = (load_file(path / "model.safetensors") for path in (source, tmp_path / "new"))
    assert "lm_head.weight" not in new and old.keys() == new.keys()
    assert torch.equal(new["model.embed_tokens.weight"][:2], old["model.embed_tokens.weight"][[1, 0]])
    assert all(torch.equal(new[name], old[name]) for name in old if name != "model.embed_tokens.weight")


def test_a_tokenizer_that_shares_nothing_that_is_seen_is_refused(chain, tmp_path: Path):
    run_dir = chain.copy("foreign", before="data")
    with pytest.raises(DataError, match="of its 263 tokens that the model has too, none is 1000000 times in 100"):
        chain.run(run_dir, *SETTINGS, "swap_tokenizer.min_count=1000000", stages=["swap_tokenizer"])
    assert not (run_dir / "swap_tokenizer" / "manifest.json").exists()
