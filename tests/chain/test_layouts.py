"""The whole chain on two ranks, tensor parallel and pipeline parallel, ends where one process ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bielik_nemo.config import CHAIN

# Layers must divide by the pipeline size, and each of its stages must keep one: which ones importance drops depends on
# the text, which is another one on each machine.
LAYOUTS = {"tp2": [], "pp2": ["prune.target.num_layers=2", "prune.drop_layers=[1,2]"]}


def numbers(run_dir: Path) -> dict:
    return json.loads((run_dir / "report.json").read_text())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_end_where_one_process_ends(layout: str, chain, monkeypatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.setenv("HF_TOKEN", chain.secret)
    run_dir, single = chain.empty(layout), chain.finished
    if LAYOUTS[layout]:
        single = chain.copy("single", before="prune")
        chain.run(single, *LAYOUTS[layout])
    chain.run(run_dir, f"parallel={layout}", *LAYOUTS[layout])

    found, expected = numbers(run_dir), numbers(single)
    assert found["parameters"] == expected["parameters"]
    assert found["held_out_loss"] == pytest.approx(expected["held_out_loss"], abs=1e-3)
    assert found["held_out_loss"]["pruned"] == pytest.approx(expected["held_out_loss"]["pruned"], abs=1e-5)
    assert found["parity"]["max_abs_logit_diff"] <= 1e-4
    for one, other in zip(*(chain.result(d, "distill")["metrics.jsonl"] for d in (run_dir, single)), strict=True):
        assert one["step"] == other["step"] and one.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-3)
    # Two ranks worked where the layout asks for them, and left their own shards; what they say has come through.
    ranks = {path.name.split("_")[2] for path in (run_dir / "distill" / "megatron" / "weights").glob("*.distcp")}
    assert ranks == {"0", "1"}
    said = capfd.readouterr().err
    assert all(f"{stage:<10} done in" in said for stage in CHAIN) and "nats per token after 3,072 tokens" in said
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert [path for path in files if chain.secret.encode() in path.read_bytes()] == []
    # A layout decides nothing: the other one finds everything done.
    chain.run(run_dir, *LAYOUTS[layout])
    assert capfd.readouterr().err.count("done before") == len(CHAIN)
