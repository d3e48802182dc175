"""Rollouts beside `transformers.generate`: the same model, prompts, number of answers and tokens, in one process.

    OMP_NUM_THREADS=1 python benchmarks/rollout.py runs/rollout                 # SmolLM2-135M
    OMP_NUM_THREADS=1 python benchmarks/rollout.py runs/rollout --model tiny

Sampling at temperature 1 from all words, answers of one length (no token ends them), batches of the same prompts. The
ways take turns; each number is the median of its turns. transformers runs with its own defaults (SDPA, growing cache)
and without what the CPU backend redirects. The way without a cache takes the first prompt alone. Prints Markdown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from bielik_nemo import ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.data.builtin import resolve_model_source
from bielik_nemo.data.text import PACKAGE_DOCS, read_documents
from bielik_nemo.data.tokenizer import load_tokenizer
from bielik_nemo.engine import convert, distributed, model
from bielik_nemo.engine.megatron_rollout import MegatronEngine
from bielik_nemo.engine.rollout import Sampling

CACHED, UNCACHED, TRANSFORMERS = "with KV cache", "without KV cache", "transformers.generate"


def prompts(directory: Path, vocab_size: int, count: int) -> list[list[int]]:
    """Beginnings of package descriptions: 16 to 64 tokens, by length."""
    tokenizer = load_tokenizer(directory, vocab_size)
    found = []
    for document in read_documents(PACKAGE_DOCS):
        length = 16 + 48 * len(found) // max(count - 1, 1)
        ids = tokenizer(document.text[: 8 * length], add_special_tokens=False)["input_ids"]
        if len(ids) >= length:
            found.append(ids[:length])
        if len(found) == count:
            return found
    raise SystemExit(f"--prompts: found {len(found)} package descriptions, allowed: that many")


def by_transformers(hf: torch.nn.Module, batch: list[list[int]], samples: int, tokens: int) -> int:
    """Answers to one batch; how many tokens they have."""
    longest = max(map(len, batch))
    ids = torch.tensor([[0] * (longest - len(each)) + each for each in batch])
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in batch])
    hf.generation_config = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=tokens, num_return_sequences=samples, pad_token_id=0
    )
    with torch._C.DisableTorchFunction():
        return hf.generate(ids, attention_mask=mask)[:, longest:].numel()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="where the built-in model is put")
    parser.add_argument("--model", choices=["smollm2", "tiny"], default="smollm2")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32, help="answers side by side")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    source = resolve_model_source(f"builtin:{options.model}", options.directory)
    shape = Architecture.from_hf(source)
    asked = prompts(source, shape.vocab_size, options.prompts)
    hf = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    sampling = Sampling(options.tokens, ())
    seconds: dict[str, list[tuple[float, float]]] = {CACHED: [], TRANSFORMERS: [], UNCACHED: []}

    with distributed.model_parallel():
        megatron = model.build(model.gpt_config(shape), shape)
        convert.load_hf(megatron, source, shape)

        def here(cache: bool, of: list[list[int]]) -> int:
            engine = MegatronEngine(megatron, shape.vocab_size, str, options.batch_size, cache)
            found = engine.generate(of, range(len(of)), options.samples, sampling)
            return sum(len(answer.ids) for _, answers in found for answer in answers)

        def there() -> int:
            size = max(options.batch_size // options.samples, 1)
            batches = [asked[start : start + size] for start in range(0, len(asked), size)]
            return sum(by_transformers(hf, batch, options.samples, options.tokens) for batch in batches)

        ways: dict[str, Callable[[], int]] = {
            CACHED: lambda: here(True, asked),
            TRANSFORMERS: there,
            UNCACHED: lambda: here(False, asked[:1]),
        }
        with ui.progress("rollouts", 2 * options.rounds + 1) as advance:
            for turn in range(options.rounds):
                for name in [CACHED, TRANSFORMERS][:: -1 if turn % 2 else 1] + [UNCACHED] * (
                    turn == 0 and options.tokens != 24
                ):
                    wall, cpu = time.perf_counter(), time.process_time()
                    count = ways[name]()
                    seconds[name].append(((time.perf_counter() - wall) / count, (time.process_time() - cpu) / count))
                    advance(f"{name}: {1 / seconds[name][-1][0]:,.0f} tokens/s")

    rates = {
        name: [1 / median(each[clock] for each in found) for clock in (0, 1)]
        for name, found in seconds.items()
        if found
    }
    print("| rollouts | tokens/s | ratio | tokens per CPU second | ratio |\n| --- | --- | --- | --- | --- |")
    for name, found in rates.items():
        cells = [f"{rate:,.1f} | {rate / other:.2f}" for rate, other in zip(found, rates[TRANSFORMERS], strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
