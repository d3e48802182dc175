"""The exported model in other formats, each loaded by the runtime that it is made for and measured there.

All are measured on the same held-out token ids as the export itself by plain transformers. A format whose loss changes
by more than `quantize.max_change` allows fails the stage, and nothing stands under its final name. GGUF formats are
made of the one in float16; llama.cpp must tokenise the held-out text as the model's own tokenizer does. FP8 and NVFP4
are measured by vLLM where it can run them, else with Model Optimizer's arithmetic, which the metrics say.

Leaves `formats/` with a file or a directory for each, and `metrics.json`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bielik_nemo import artifacts, quantization, ui
from bielik_nemo.architecture import Architecture
from bielik_nemo.config import Config
from bielik_nemo.data.tokenizer import load_tokenizer
from bielik_nemo.engine import calibration, convert, datasets, low_precision, vllm_loss
from bielik_nemo.engine.model import DTYPES
from bielik_nemo.errors import GateError
from bielik_nemo.formats import gguf_file, gguf_vocabulary, llama, plain
from bielik_nemo.formats.gguf_vocabulary import Vocabulary
from bielik_nemo.quantization import GGUF, short

WEIGHED = {"gguf:q6_k", "gguf:q4_k_m"}
"""Formats whose rounding heeds the importance matrix; q8_0 rounds to the nearest."""
PROBE = (
    "Zażółć gęślą jaźń: 7 lat, 38 zł, 1989 r., 12345 km, 3.14159, 10 000 000. I'm, you'll, IT'S, don't!\n\n\n"
    "  def f(x):\n\t\treturn {'a': [1,2]}  # co?!...\r\n日本語 русский ελληνικά e\u0301 🙂👍  koniec "
)
"""What rules of cutting text into words differ in: digits, contractions, white space, signs, scripts."""


def run(config: Config, run_dir: Path) -> dict[str, Any]:
    """Write all formats and measure them.

    Raises:
        CheckpointError: a runtime cannot load what was written.
        DataError: llama.cpp has no tokenizer for this model.
        GateError: a format changes the loss by more than it may, or cannot hold a weight.
    """
    here, source = run_dir / "quantize", run_dir / "export" / "hf"
    settings, a = config.quantize, Architecture.from_hf(source)
    held_out = datasets.by_language(run_dir / "data" / "held_out", config.data.seq_length, config.data.held_out_tokens)
    blocks = torch.cat(list(held_out.values()))
    as_gguf = [name for name in settings.formats if name.startswith(GGUF)]
    low = [name for name in settings.formats if name not in as_gguf]
    weighed = settings.importance and not WEIGHED.isdisjoint(as_gguf)
    # What can fail at once comes before what takes hours.
    tokenizer = _tokenizer(source, a, blocks) if as_gguf else None
    samples = _calibration(config, run_dir) if weighed or low else torch.empty(0, 0)
    model, weights = plain.load(source), {}
    with ui.progress("loss of the export", len(blocks)) as advance:
        loss = plain.loss(model, blocks, advance)
    if weighed:
        with ui.progress("importance matrix", len(samples)) as advance:
            weights = plain.importance(model, samples, advance)
    del model
    bench = Bench(config, here, a, blocks, loss)
    (here / "formats").mkdir()
    found = list(_gguf(bench, source, tokenizer, as_gguf, weights)) if tokenizer else []
    found += [_low_precision(bench, source, name, samples) for name in low]
    found.sort(key=lambda row: settings.formats.index(row["name"]))
    metrics = {"tokens": blocks[:, 1:].numel(), "loss": loss, "formats": found}
    artifacts.write_json(here / "metrics.json", metrics)
    return metrics


@dataclass(frozen=True)
class Bench:
    """What each format is held against, and where it goes."""

    config: Config
    here: Path
    a: Architecture
    blocks: Tensor  # held-out token ids [n, s + 1]
    loss: float  # of the export

    def accept(self, name: str, unchecked: Path, final: str, loss: float, imatrix: bool = False) -> dict[str, Any]:
        """Give a format its final name; returns its row of the metrics.

        Raises:
            GateError: its loss is too far from the export's, or no number.
        """
        change, allowed = loss / self.loss - 1, getattr(self.config.quantize.max_change, short(name))
        if not abs(change) <= allowed:
            raise GateError(
                f"{name}: loss {loss:.4f} nats per token, the export's is {self.loss:.4f}: a change of {change:+.2%}, "
                f"quantize.max_change.{short(name)}={allowed:g} is allowed"
            )
        path = self.here / "formats" / final
        os.replace(unchecked, path)
        size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.glob("*.safetensors")))
        bits = 8 * size / self.a.num_parameters()
        ui.say(f"  {name}: {loss:.4f} nats per token ({change:+.2%}), {bits:.2f} bits per weight")
        return {
            "name": name,
            "path": path.relative_to(self.here).as_posix(),
            "bytes": size,
            "bits_per_weight": bits,
            "loss": loss,
            "change": change,
            "runtime": quantization.runtime(name),
            "imatrix": imatrix,
        }


def _gguf(
    bench: Bench, source: Path, tokenizer: tuple[Vocabulary, str], names: list[str], weights: dict[str, Tensor]
) -> Iterator[dict[str, Any]]:
    """GGUF files, each written, loaded and measured by llama.cpp; float16, of which the others are made, last."""
    half = bench.here / "f16.unchecked"
    gguf_file.write(source, half, bench.a, *tokenizer)
    renamed = gguf_file.gguf_names(bench.a)
    weights = {renamed[name]: value for name, value in weights.items()}
    for name in sorted(names, key="gguf:f16".__eq__):
        path = half
        if name != "gguf:f16":
            path = bench.here / f"{short(name)}.unchecked"
            llama.quantize(half, path, short(name), weights)
        with ui.progress(f"loss of {name}", len(bench.blocks)) as advance:
            loss = llama.loss(path, bench.blocks, advance)
        yield bench.accept(name, path, f"model-{short(name)}.gguf", loss, bool(weights) and name in WEIGHED)
    half.unlink(missing_ok=True)


def _low_precision(bench: Bench, source: Path, name: str, samples: Tensor) -> dict[str, Any]:
    """A directory in FP8 or NVFP4, written by Model Optimizer and measured by vLLM or in its place."""
    config, path = bench.config, bench.here / f"{name}.unchecked"
    with ui.progress(f"scales of {name}", len(samples)) as advance:
        model = plain.load(source, DTYPES[config.model.dtype])
        low_precision.write(model, path, name, samples, config.quantize.keep_layers, advance)
    del model
    convert.copy_tokenizer(source, path)
    if quantization.runtime(name) == quantization.VLLM:
        loss = vllm_loss.loss(path, bench.blocks)
    else:
        with ui.progress(f"loss of {name}", len(bench.blocks)) as advance:
            loss = plain.loss(low_precision.simulated(plain.load(source), path), bench.blocks, advance)
    return bench.accept(name, path, name, loss)


def _tokenizer(source: Path, a: Architecture, blocks: Tensor) -> tuple[Vocabulary, str]:
    """The model's tokenizer for llama.cpp, and the rule with which that gives the same ids for held-out text."""
    vocabulary, tokenizer = gguf_vocabulary.read(source, a.vocab_size), load_tokenizer(source, a.vocab_size)
    texts = [PROBE, *tokenizer.batch_decode(blocks[:16], clean_up_tokenization_spaces=False)]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return vocabulary, llama.word_rule(a, vocabulary, dict(zip(texts, ids, strict=True)))


def _calibration(config: Config, run_dir: Path) -> Tensor:
    """Token ids `[n, s]`: the first of what the importance of units was measured on, or else of the training text."""
    wanted = config.quantize.calibration_samples
    if "score" in config.pipeline.stages:
        return calibration.load(run_dir)[:wanted]
    length = config.data.seq_length
    return torch.cat(list(datasets.by_language(run_dir / "data" / "train", length, wanted * length).values()))[:, :-1]
