"""Model cards of made-up facts, read as the Hugging Face Hub reads them."""

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from bielik_nemo.architecture import Architecture
from bielik_nemo.report.card import Facts, card, format_card
from bielik_nemo.report.story import flat, steps

SOURCE = Architecture(2, 8, 16, 2, 1, 4, 10, False)  # 1352 parameters, see tests/test_report.py
FINAL = replace(SOURCE, num_layers=1, ffn_hidden_size=12)  # 664
TEXT = {"name": "web<1>|2.jsonl", "language": "pl", "documents": 1200, "tokens": 34000}
STAGES = {
    "import_hf": {"config": {}, "metrics": {"parameters": 1352}},
    "data": {"config": {}, "metrics": {"sources": [TEXT]}},
    "prune": {"config": {"prune.compensation": {"ffn": True, "attention": False}}, "metrics": {}},
    "swap_tokenizer": {"config": {}, "metrics": {"copied": 263, "mixed": 1718, "parity": 1e-6}},
    "distill": {
        "config": {
            "distill.weights": {"forward_kl": 0.75, "reverse_kl": 0.0, "cross_entropy": 0.25},
            "distill.temperature": 1.0,
            "optim": {"lr": 1e-4, "schedule": "cosine"},
            "data.seq_length": 4096,
            "data.global_batch_size": 768,
            "trainer.max_steps": 3000,
        },
        "metrics": {"step": 2900},
    },
    "dpo": {
        "config": {
            "dpo.loss": "bielik",
            "dpo.beta": 0.05,
            "dpo.penalty": 2.5,
            "dpo.lr": 5e-7,
            "dpo.schedule": "constant",
            "dpo.global_batch_size": 64,
            "dpo.seq_length": 32768,
            "dpo.max_steps": None,
        },
        "metrics": {"step": 5343},
    },
    "export": {"config": {}, "metrics": {"parity": 5.2e-6}},
}
RECOVERY = {"value": 0.75, "low": 0.7, "high": 0.8, "verdict": "lost"}
TASK = {"models": {"source": {"value": 0.8}, "dpo": {"value": 0.6}}, "recovery": {"dpo": RECOVERY}}
NUMBERS = {
    "held_out_loss": {"source": 2.0, "distilled": 2.5},
    "bits_per_byte": {"source": 0.75, "<other>": 0.875},
    "benchmarks": {"teacher": "source", "confidence": 0.95, "tasks": {"polemo2": TASK}, "mean": {"dpo": RECOVERY}},
    "speed": {
        "engine": "transformers",
        "points": [{"model": "source", "input_tokens": 10240, "output_tokens": 64, "concurrency": 1, "ttft_ms": 24.6}],
    },
    "formats": {"formats": [{"name": "gguf:q8_0", "bytes": 7.8e9, "change": 0.0006, "runtime": "llama.cpp"}]},
    "blend": {"distill": [{"tokens": 1000}, {"tokens": 500}]},
    "packages": {"torch": "2.13.0"},
}
FACTS = Facts("Small-1", "Apache-2.0", "owner/Large", True, "", STAGES, SOURCE, FINAL, NUMBERS, chat=True)


def test_front_matter_is_what_the_hub_reads():
    read = ModelCard(card(FACTS)).data.to_dict()
    assert read == {
        "license": "apache-2.0",
        "language": ["pl"],
        "pipeline_tag": "text-generation",
        "library_name": "transformers",
        "base_model": "owner/Large",
        "tags": ["pruned", "distillation", "tokenizer-transfer", "dpo"],
    }


@pytest.mark.parametrize(
    ("licence", "told"),
    [
        ("MIT", {"license": "mit"}),
        ("LicenseRef-Mine", {"license": "other", "license_name": "licenseref-mine"}),
        ("MIT OR Apache-2.0", {"license": "other", "license_name": "mit or apache-2.0"}),
    ],
)
def test_a_licence_that_the_hub_has_no_name_for_is_other(licence, told):
    text = card(replace(FACTS, licence=licence, base="local", published=False))
    read = ModelCard(text).data.to_dict()
    assert {key: read[key] for key in read if key.startswith("license")} == told
    assert "base_model" not in read and "made of `local`" in text and f"## Licence\n\n{licence}." in text


def test_every_stage_that_changed_the_model_is_told_with_its_settings():
    """Of 3000 steps the student of 2900 is the result; DPO's rate is its own, distillation's the common one."""
    assert steps(STAGES, SOURCE, FINAL) == [
        (
            "Pruning",
            "structured, from 1.4k to 664 parameters; layers 2 to 1, FFN size 16 to 12; "
            "made up for by least squares (ffn)",
        ),
        ("Another tokenizer", "embeddings by FOCUS (arXiv 2305.14481): 263 copied, 1,718 mixed"),
        (
            "Distillation",
            "from the source's predictions, loss 0.75 forward kl + 0.25 cross entropy at temperature 1, 2,900 steps, "
            "768 sequences of up to 4,096 tokens in a batch, learning rate 0.0001 (cosine)",
        ),
        (
            "Preference optimisation",
            "DPO-Positive, beta 0.05, penalty 2.5, 5,343 steps, 64 pairs of up to 32,768 tokens in a batch, "
            "learning rate 5e-07 (constant)",
        ),
        ("Export", "logits equal to those of what was trained, to 5e-06"),
    ]
    assert flat({"a": {"b": {"c": 1}}, "d.e": [2]}) == {"a.b.c": 1, "d.e": [2]}


def test_numbers_stand_in_tables_that_no_name_can_break():
    text = card(FACTS)
    for line in (
        "Small-1 has 664 parameters. It was made of [owner/Large](https://huggingface.co/owner/Large), which has 1.4k: "
        "50.9 % fewer.",
        "| parameters, one of the two embedding matrices left out | 1,272 | 584 |",
        "| web&lt;1>\\|2.jsonl | text | pl | 1,200 documents | 34,000 |",
        "Of the text training drew 1,500 tokens in `distill`.",
        "|  | Source | Distilled | DPO | &lt;other> |",
        "| Bits per byte | 0.750 |  |  | 0.875 |",
        "what was kept of the source's score and its 95 % interval, best first.",
        "| polemo2 | 0.800 | 0.600 | 75.0 % (70.0 to 80.0) | lost |",
        "| Source | 10,240 | 64 | 1 | 24.6 |  |  |",
        "| gguf:q8_0 | 7.80 GB |  | +0.06 % | llama.cpp |",
        "- It lost most in polemo2 (75.0 % kept).",
        "- All that it was trained on here is in pl; other languages may have suffered.",
    ):
        assert line in text, line
    assert "apply_chat_template" in text and "torch 2.13.0" in text and "None" not in text


def test_what_is_missing_is_left_out():
    bare = Facts("Small-1", "MIT", "base", False, "", {}, SOURCE, SOURCE)
    text = card(bare)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Architecture",
        "## Use",
        "## Limits",
        "## Licence",
    ]
    assert "fewer" not in text and "apply_chat_template" not in text and "None" not in text
    assert "was not taught to follow instructions" in text and "smaller model" not in text
    unnamed = {"data": {"metrics": {"sources": [TEXT, TEXT | {"language": ""}]}}}
    assert "other languages" not in card(replace(bare, stages=unnamed))


def test_the_card_of_a_format_tells_its_files():
    row = {"bytes": 4_400_000, "bits_per_weight": 4.85, "loss": 2.02, "change": 0.01, "runtime": "llama.cpp"}
    text = format_card(FACTS, "gguf", {"Small-1-Q4_K_M.gguf": row})
    assert ModelCard(text).data.to_dict()["tags"] == ["gguf"]
    assert "| `Small-1-Q4_K_M.gguf` | 4.4 MB | 4.85 | 2.0200 | +1.00 % |" in text
    assert "llama-cli -m Small-1-Q4_K_M.gguf" in text and "vllm serve Small-1" in format_card(
        FACTS, "fp8", {"Small-1": {}}
    )
