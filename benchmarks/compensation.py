"""Plain Minitron slicing against compensation on SmolLM2-135M, before and after distillation at equal tokens.

    python benchmarks/compensation.py runs/compensation      # 24 short runs; started again, it goes on

Two cuts of a third: layers and FFN (30 -> 24, 1536 -> 960: Bielik's axes), and the hidden stream (576 -> 384). Three
seeds draw the held-out documents, the calibration samples and the order of training anew. Every run is the ordinary
pipeline; students of one seed learn from one cached teacher pass. Prints Markdown tables of held-out losses in nats
per token, mean and standard deviation over the seeds, and of the gap to the source, relative to plain slicing's.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from statistics import mean, stdev

from bielik_nemo import artifacts, pipeline
from bielik_nemo.config import compose
from bielik_nemo.engine import progress

STAGES = "pipeline.stages=[import_hf,data,score,prune,teacher,distill]"
CUTS = {
    "24 layers, FFN 960": ["prune.target.num_layers=24", "prune.target.ffn_hidden_size=960"],
    "hidden 384": [
        "prune.target.num_layers=30",
        "prune.target.ffn_hidden_size=1536",
        "prune.target.hidden_size=384",
    ],
}
VARIANTS = {
    "24 layers, FFN 960": {
        "plain": [],
        "attention + ffn + blocks": ["attention", "ffn", "blocks"],
        "ffn": ["ffn"],
        "blocks": ["blocks"],
        "attention": ["attention"],
    },
    "hidden 384": {"plain": [], "rotation": ["rotation"], "rotation + ffn": ["rotation", "ffn"]},
}
SETTINGS = [
    STAGES,
    "prune.calibration.samples=64",
    "prune.compensation.samples=64",
    "trainer.max_steps=16",
    "trainer.validate_every=16",
    "trainer.checkpoint_every=1000",
    "optim.warmup_steps=2",
]


def measure(run_dir: Path, seed: int, cut: str, parts: list[str]) -> dict[str, float]:
    """Losses of the source, and of the cut model before and after distillation."""
    overrides = [*SETTINGS, *CUTS[cut], f"run.dir={run_dir}", f"run.seed={seed}"]
    config = compose("smollm2", overrides + [f"prune.compensation.{part}=true" for part in parts])
    pipeline.run(config)
    losses = [r["held_out_loss"] for r in progress.read(run_dir / "distill" / "metrics.jsonl") if "held_out_loss" in r]
    shutil.rmtree(run_dir / "superseded", ignore_errors=True)  # a gigabyte for each run
    manifests = {stage: artifacts.Manifest.read(run_dir / stage) for stage in ("score", "prune")}
    return {
        "source": manifests["score"].metrics["source_loss"],
        "before": losses[0],
        "after": losses[-1],
        "parameters": manifests["prune"].metrics["target_parameters"],
        "seconds": manifests["prune"].seconds,
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown, from results by `seed/cut/variant`; a variant is compared with plain slicing at its own seeds."""
    lines = []
    seeds = sorted({key.partition("/")[0] for key in results})
    for cut, variants in VARIANTS.items():
        plain = {seed: results[f"{seed}/{cut}/plain"] for seed in seeds if f"{seed}/{cut}/plain" in results}
        if not plain:
            continue
        lines += [
            f"**{cut}**: source {mean(r['source'] for r in plain.values()):.3f}",
            "",
            "| compensation | seeds | parameters | before distillation | of plain's gap | after | of plain's gap | s |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for variant in variants:
            found = {seed: results[key] for seed in plain if (key := f"{seed}/{cut}/{variant}") in results}
            if not found:
                continue
            cells = []
            for moment in ("before", "after"):
                values = [r[moment] for r in found.values()]
                gaps = [
                    (r[moment] - r["source"]) / (plain[seed][moment] - plain[seed]["source"])
                    for seed, r in found.items()
                ]
                spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
                cells += [f"{mean(values):.3f}{spread}", f"{mean(gaps):.0%}"]
            size = f"{next(iter(found.values()))['parameters'] / 1e6:.1f}M"
            seconds = mean(r["seconds"] for r in found.values())
            lines.append(f"| {variant} | {len(found)} | {size} | {' | '.join(cells)} | {seconds:.0f} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run what has not run, then print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--cuts", nargs="+", default=list(CUTS), choices=list(CUTS))
    options = parser.parse_args()
    for seed in options.seeds:
        file = options.directory / f"seed{seed}.json"
        results = json.loads(file.read_text()) if file.is_file() else {}
        for cut in options.cuts:
            for variant, parts in VARIANTS[cut].items():
                if f"{seed}/{cut}/{variant}" not in results:
                    results[f"{seed}/{cut}/{variant}"] = measure(options.directory / f"seed{seed}", seed, cut, parts)
                    artifacts.write_json(file, results)
    every = {}
    for file in options.directory.glob("seed*.json"):
        every |= artifacts.read_json(file)
    print(table(every))


if __name__ == "__main__":
    main()
