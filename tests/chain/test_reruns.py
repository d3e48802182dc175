"""A change of settings repeats exactly the stages whose result depends on it, and nothing when it is taken back."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from runs import unfinished

from bielik_nemo.config import CHAIN, load
from bielik_nemo.stages import GRAPH
from bielik_nemo.stages.alignment import ALIGNMENT

AFTER_DATA = CHAIN[1:]  # all that stands on the tokenised text
AFTER_PRUNE = ["prune", "distill", "export", "evaluate"]
AFTER_DISTILL = ["distill", "export", "evaluate"]
# What each setting repeats, supposed that a stage which runs again gives another result.
CHANGES = {
    "model.dtype=bfloat16": CHAIN,
    "run.seed=7": AFTER_DATA,
    "data.held_out_fraction=0.1": AFTER_DATA,
    "data.sources.0.language=pl": AFTER_DATA,
    "data.language_weights={en:1} data.sources.0.language=en": AFTER_DATA,
    "data.sources.0.weight=2": ["score", *AFTER_PRUNE],
    "data.seq_length=64": ["score", *AFTER_PRUNE],
    "prune.calibration.samples=4": ["score", *AFTER_PRUNE],
    "prune.calibration.batch_size=2": ["score", *AFTER_PRUNE],
    "prune.calibration.seq_length=64": ["score", *AFTER_PRUNE],
    "prune.calibration.sources.0.language=pl": ["score", *AFTER_PRUNE],
    "prune.calibration.sources.0.weight=2": ["score", *AFTER_PRUNE],
    "prune.calibration.sources=[]": ["score", *AFTER_PRUNE],
    "data.held_out_tokens=2048": ["score", *AFTER_PRUNE],
    "prune.importance.batch_aggregation=mean": ["score", *AFTER_PRUNE],
    "prune.importance.seq_aggregation=l2": ["score", *AFTER_PRUNE],
    "prune.importance.layers=loss_increase": ["score", *AFTER_PRUNE],
    "prune.importance.layer_samples=4": ["score", *AFTER_PRUNE],
    "prune.importance.block_sizes=[1]": ["score", *AFTER_PRUNE],
    "prune.target.ffn_hidden_size=128": AFTER_PRUNE,
    "prune.target.num_layers=2": AFTER_PRUNE,
    "prune.drop_layers=[1]": AFTER_PRUNE,
    "prune.keep_first_layers=1": AFTER_PRUNE,
    "prune.keep_last_layers=1": AFTER_PRUNE,
    "prune.compensation.ffn=true prune.compensation.samples=8": AFTER_PRUNE,
    "prune.streaming=true": AFTER_PRUNE,
    "distill.temperature=2": AFTER_DISTILL,
    "distill.weights.cross_entropy=0.1": AFTER_DISTILL,
    "distill.jensen_shannon_beta=0.1": AFTER_DISTILL,
    "distill.hidden_layers=[[0,0]] distill.weights.hidden_state=0.5": AFTER_DISTILL,
    "data.separate_documents=true": AFTER_DISTILL,
    "optim.lr=1e-3": AFTER_DISTILL,
    "optim.clip_grad=0.5": AFTER_DISTILL,
    "optim.beta1=0.8": AFTER_DISTILL,
    "optim.beta2=0.9": AFTER_DISTILL,
    "optim.weight_decay=0.2": AFTER_DISTILL,
    "optim.reference_tokens=1000": AFTER_DISTILL,
    "trainer.max_steps=8": AFTER_DISTILL,
    "trainer.precision=bf16-mixed": AFTER_DISTILL,
    "data.global_batch_size=8": AFTER_DISTILL,
    "export.max_shard_gib=1": ["export"],
    "export.parity_tokens=256": ["export"],
    "export.parity_tolerance=1e-3": ["export"],
    "evaluate.prompts=[Why]": ["evaluate"],
    "evaluate.sample_tokens=2": ["evaluate"],
    "evaluate.batch_size=2": ["evaluate"],
    "evaluate.agreement_tokens=512": ["evaluate"],
    "evaluate.models=[{name:other,path:builtin:tiny}]": ["evaluate"],
    "evaluate.harness.tasks=[polish_corrections]": ["evaluate"],
    "evaluate.harness.shots=1": ["evaluate"],
    "evaluate.harness.limit=9": ["evaluate"],
    "evaluate.harness.chat_template=true": ["evaluate"],
    "evaluate.harness.confidence=0.9": ["evaluate"],
    "evaluate.harness.resamples=9": ["evaluate"],
    "chat.held_out_tokens=9": ["evaluate"],
    "chat.held_out_pairs=9": ["evaluate"],
    "chat.held_out_tasks=9": ["evaluate"],
    # Of stages that this pipeline does not have.
    "benchmark.repeats=3": [],
    "release.licence=MIT": [],
    "prune.search.max_parameters=2e5": [],
    "teacher.samples_per_token=10": [],
    "tokenizers.documents=1": [],
    "swap_tokenizer.tokens=9": [],
    "swap_tokenizer.dimensions=9": [],
    "swap_tokenizer.epochs=9": [],
    "swap_tokenizer.min_count=9": [],
    "adapt.lr=1e-3": [],
    "pretrain.lr=1e-4": [],
    "distill_long.seq_length=64": [],
    "distill_long.rotary_base=5e5": [],
    "distill_long.max_steps=2": [],
    "distill_long.global_batch_size=8": [],
    "distill_long.schedule=constant": [],
    "distill_long.lr=1e-4": [],
    "distill_long.min_lr=1e-6": [],
    "distill_long.warmup_steps=1": [],
    "distill_long.decay_steps=1": [],
    "quantize.keep_layers=1": [],
    # Names, layout, rhythm, and what only checks.
    "run.name=other": [],
    "parallel=tp2": [],
    "cluster.devices_per_node=2": [],
    "model.shape=null": [],
    "data.micro_batch_size=1": [],
    "trainer.log_every=2": [],
    "trainer.validate_every=2": [],
    "trainer.checkpoint_every=3": [],
    "trainer.keep_last=1": [],
    "trainer.keep_best=true": AFTER_DISTILL,
    "trainer.max_loss_spike=null": [],
    "trainer.max_hours=2": [],
    "trainer.async_checkpoints=true": [],
    "distill.gate_max_loss=5": [],
    "distill.gate_tolerance=0.5": [],
    "evaluate.harness.download=true": [],
    "pipeline.stages=[import_hf,data,score,prune,distill,export]": [],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_repeats_what_depends_on_it(change: str, chain):
    config = chain.config(chain.finished, *change.split())
    assert unfinished(config, chain.finished) == CHANGES[change]


def test_every_setting_that_decides_something_is_tried_above():
    tried = {change.split("=")[0].replace(".0.", ".") for change in CHANGES}
    items = (change.split("=", 1) for change in CHANGES if "=[{" in change)
    tried |= {f"{key}.{name}" for key, value in items for name in re.findall(r"[{,](\w+):", value)}
    alignment = {stage.name for stage in ALIGNMENT}  # test_alignment.py and test_merge.py try theirs
    decisive = {key for name, stage in GRAPH.items() if name not in alignment for key in stage.keys}
    assert [key for key in decisive if not any(f"{name}.".startswith(f"{key}.") for name in tried)] == []


def test_content_of_sources_decides_and_not_their_place(chain, tmp_path: Path, tiny_hf: Path):
    shutil.copytree(tiny_hf, tmp_path / "moved")
    config = chain.config(chain.finished, f"model.source='{tmp_path}/moved'")
    assert unfinished(config, chain.finished) == []
    with open(tmp_path / "moved" / "model.safetensors", "r+b") as weights:
        weights.seek(-1, os.SEEK_END)
        last = weights.read(1)
        weights.seek(-1, os.SEEK_END)
        weights.write(bytes([last[0] ^ 1]))
    assert unfinished(config, chain.finished) == CHAIN
    (tmp_path / "text.txt").write_text("other text")
    config = chain.config(chain.finished, f"data.sources=[{{path:'{tmp_path}/text.txt'}}]")
    assert unfinished(config, chain.finished) == AFTER_DATA
    config = chain.config(chain.finished)
    config.data.sources[0].text_key = "body"
    assert unfinished(config, chain.finished) == AFTER_DATA


def test_another_model_is_exported_when_the_pipeline_ends_elsewhere(chain):
    config = chain.config(chain.finished, "pipeline.stages=[import_hf,data,score,prune,export]")
    assert unfinished(config, chain.finished) == ["export"]
    config = chain.config(chain.finished, "pipeline.stages=[import_hf,export]")
    assert unfinished(config, chain.finished) == ["export"]


def states(chain, run_dir: Path) -> dict[str, tuple[str, int]]:
    """When each stage started, and its manifest's modification time."""
    return {
        name: (chain.manifest(run_dir, name).started, (run_dir / name / "manifest.json").stat().st_mtime_ns)
        for name in CHAIN
    }


def test_real_changes_there_and_back(chain, capfd: pytest.CaptureFixture[str]):
    run_dir = chain.copy("reruns")
    first = states(chain, run_dir)

    def again(*overrides: str) -> tuple[list[str], str]:
        before = states(chain, run_dir)
        chain.run(run_dir, *overrides)
        after = states(chain, run_dir)
        return [name for name in CHAIN if after[name] != before[name]], capfd.readouterr().err

    capfd.readouterr()
    changed, said = again()
    assert changed == [] and said.count("done before") == 7 and "running" not in said
    changed, said = again("prune.target.num_layers=2")
    assert changed == AFTER_PRUNE and "superseded" not in said
    assert load(run_dir / "prune" / "config.yaml").prune.target.num_layers == 2
    # Back: four stages are taken back, none runs, and the first files are there again.
    changed, said = again()
    assert changed == AFTER_PRUNE and said.count("taken back from superseded") == 4 and "running" not in said
    assert states(chain, run_dir) == first
    # More held-out text: the scores come out the same, so that nothing is pruned or trained again.
    changed, _ = again("data.held_out_tokens=2048")
    assert changed == ["score", "evaluate"]
    assert chain.result(run_dir, "score") == chain.result(chain.finished, "score")
    # A finished stage that lost a file runs again; what it leaves has the same content, but for the id of the save.
    (run_dir / "evaluate" / "metrics.json").unlink()
    changed, _ = again("data.held_out_tokens=2048")
    assert changed == ["evaluate"]
