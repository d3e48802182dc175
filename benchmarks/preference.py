"""DPO-Positive beside plain DPO on SmolLM2-135M: the same SFT before it, the same pairs, the same steps.

    python benchmarks/preference.py runs/preference      # about a quarter of an hour for each seed; goes on if stopped

Pairs are Polish sentences with a mistake (rejected) and corrected (chosen), a few letters apart. A seed draws what is
held out, and the order of training. Prints a Markdown table of the held-out pairs: mean, and standard deviation where
there are several seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev

from bielik_nemo import artifacts, pipeline
from bielik_nemo.config import compose

SETTINGS = [
    "model=smollm2",
    "sft=smollm2",
    "dpo=smollm2",
    "cluster=local",
    "pipeline.stages=[import_hf,chat,sft,preferences,reference,dpo,evaluate]",
    "sft.max_steps=16",
    "chat.held_out_fraction=0.2",
    "chat.held_out_tokens=2048",
    "chat.held_out_pairs=64",
    "trainer.log_every=1",
    "trainer.validate_every=16",
    "trainer.checkpoint_every=16",
]
LOSSES = {"plain DPO": "plain", "DPO-P, bielik": "bielik"}
COLUMNS = {
    "likelier": ("chosen likelier than rejected", "{:.1%}"),
    "accuracy": ("accuracy", "{:.1%}"),
    "margin": ("margin", "{:.2f}"),
    "chosen_log_ratio": ("chosen, nats above the reference", "{:+.2f}"),
    "rejected_log_ratio": ("rejected, nats above the reference", "{:+.2f}"),
    "kl": ("KL from the reference", "{:.4f}"),
    "answer_loss": ("answers, nats per token", "{:.3f}"),
}


def measure(run_dir: Path, seed: int, loss: str, others: list[str]) -> dict[str, dict[str, float]]:
    """What is measured of the source, of SFT's model and of the one that this loss made."""
    config = compose("", [*SETTINGS, *others, f"run.dir={run_dir}", f"run.seed={seed}", f"dpo.loss={loss}"])
    pipeline.run(config)
    found = artifacts.read_json(run_dir / "evaluate" / "metrics.json")
    answers, preference = found["answer_loss"], found["preference"]
    return {role: {"answer_loss": answers[role], **preference.get(role, {})} for role in answers}


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown, from results by `seed/loss`."""
    rows: dict[str, list[dict[str, float]]] = {}
    for key, found in results.items():
        name = key.partition("/")[2]
        rows.setdefault(name, []).append(found["dpo"])
        if name == next(iter(LOSSES)):  # the same before every loss
            rows.setdefault("source", []).append(found["source"])
            rows.setdefault("SFT, the reference", []).append(found["sft"])
    lines = [
        f"| model | {' | '.join(heading for heading, _ in COLUMNS.values())} |",
        f"| --- |{' --- |' * len(COLUMNS)}",
    ]
    for name in ("source", "SFT, the reference", *LOSSES):
        found = rows.get(name, [])
        cells = [_cell([each[key] for each in found if key in each], form) for key, (_, form) in COLUMNS.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float], form: str) -> str:
    if not values:
        return ""
    spread = f" ± {form.replace('+', '').format(stdev(values))}" if len(values) > 1 else ""
    return form.format(mean(values)) + spread


def main() -> None:
    """Run what has not run, then print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("overrides", nargs="*", help="settings of all runs, such as dpo.max_steps=32")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    options = parser.parse_args()
    file = options.directory / "results.json"
    results = artifacts.read_json(file) if file.is_file() else {}
    for seed in options.seeds:
        for name, loss in LOSSES.items():
            if f"{seed}/{name}" not in results:
                run_dir = options.directory / f"seed{seed}"
                results[f"{seed}/{name}"] = measure(run_dir, seed, loss, options.overrides)
                artifacts.write_json(file, results)
    print(table(results))


if __name__ == "__main__":
    main()
