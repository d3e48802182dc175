from __future__ import annotations

from pathlib import Path

import pytest

from bielik_nemo.config import compose
from bielik_nemo.stages import benchmark

HF = Path("run/export/hf")


@pytest.mark.parametrize(
    "stages, made",
    [
        ("import_hf,data,score,prune,distill,export,benchmark", {"distilled": HF}),
        ("import_hf,chat,sft,export,evaluate,benchmark", {"sft": HF}),
        ("import_hf,data,pretrain,export,benchmark", {}),  # the shape of the source, and so its speed
        ("import_hf,export,benchmark", {}),
        ("import_hf,chat,sft,benchmark", {}),
        ("benchmark", {}),
    ],
)
def test_what_is_measured(stages: str, made: dict[str, Path], random_hf):
    config = compose("tiny", [f"model.source='{random_hf('llama')}'", f"pipeline.stages=[{stages}]"])
    assert benchmark.models(config, Path("run")) == {"source": random_hf("llama"), **made}


def test_other_models_are_measured_where_transformers_can(random_hf, tmp_path: Path):
    """Not those that are Megatron's."""
    (tmp_path / "megatron").mkdir()
    named = f"[{{name:rival,path:'{random_hf('tied')}'}},{{name:stage,path:'{tmp_path}'}}]"
    overrides = [f"model.source='{random_hf('llama')}'", "pipeline.stages=[benchmark]", f"evaluate.models={named}"]
    found = benchmark.models(compose("tiny", overrides), Path("run"))
    assert found == {"source": random_hf("llama"), "rival": random_hf("tied")}


def test_a_row_for_a_person():
    row = {"model": "source", "input_tokens": 512, "output_tokens": 128, "concurrency": 4, "ttft_ms": 1234.56}
    row |= {"tpot_ms": 18.284, "limit_tpot_ms": 12.3, "tokens_per_second": 54.42, "peak_memory_gib": 20.876}
    assert benchmark.line(row) == (
        "source, 512 + 128 tokens, concurrency 4: first token 1,234.6 ms, then 18.28 ms each (limit 12.30), "
        "54.4 tokens/s, 20.88 GiB"
    )
