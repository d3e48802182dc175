"""GRPO and Dr. GRPO on a model of a quarter million parameters: what each makes of the same SFT model, seed by seed.

    python benchmarks/grpo.py runs/grpo       # some minutes for each seed; goes on if stopped

The model learns the form of an answer, and some of the answers, from conversations of `builtin:drills`; then it answers
other drills eight times each and learns from which of its answers were right. Measured on drills that neither stage
learned from, each answered once, sampled at temperature 1. A seed draws what is held out, the order of training and the
noise of sampling; both ways start from the same SFT model. Prints a Markdown table, and a row for each seed.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from statistics import mean

from bielik_nemo import artifacts, pipeline
from bielik_nemo.config import compose
from bielik_nemo.engine.progress import read

SETTINGS = [
    "sft.sources=[{path: builtin:drills}]",
    "sft.max_steps=80",
    "sft.global_batch_size=8",
    "grpo.prompts_per_rollout=32",
    "grpo.global_batch_size=32",
    "grpo.max_steps=80",
    "grpo.lr=5e-4",
    "chat.held_out_tasks=300",
    "trainer.log_every=1",
    "trainer.validate_every=20",
    "trainer.checkpoint_every=80",
]
WAYS = {
    "GRPO": [],
    "Dr. GRPO": ["grpo.scale_advantages=false", "grpo.normalization=constant", "grpo.kl=0"],
}


def measure(directory: Path, seed: int, way: str, others: list[str]) -> dict[str, float]:
    """Held-out tasks before and after, from the run's metrics; and the minutes that all stages took."""
    before = ["pipeline.stages=[import_hf,chat,sft,tasks]", f"run.dir={directory / f'seed{seed}'}"]
    run_dir = directory / f"seed{seed}-{way.replace('. ', '_').lower()}"
    seeded = [*SETTINGS, *others, f"run.seed={seed}"]
    pipeline.run(compose("tiny", [*seeded, *before]))
    if not run_dir.exists():
        shutil.copytree(directory / f"seed{seed}", run_dir)
    stages = "pipeline.stages=[import_hf,chat,sft,tasks,grpo]"
    pipeline.run(compose("tiny", [*seeded, *WAYS[way], stages, f"run.dir={run_dir}"]))
    records = read(run_dir / "grpo" / "metrics.jsonl")
    measured = [each for each in records if "held_out_reward" in each]
    first, last = measured[0], measured[-1]
    seconds = sum(artifacts.read_json(path)["seconds"] for path in run_dir.glob("*/manifest.json"))
    return {
        "before": first["held_out_reward"],
        "after": last["held_out_reward"],
        # Of the difference of two means; the tasks are the same, so that this is more than it is.
        "se": (first["held_out_reward_se"] ** 2 + last["held_out_reward_se"] ** 2) ** 0.5,
        "wrong_before": first["held_out_wrong_tokens"],
        "wrong_after": last["held_out_wrong_tokens"],
        "tokens_before": first["held_out_answer_tokens"],
        "tokens_after": last["held_out_answer_tokens"],
        "minutes": seconds / 60,
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown, from results by `seed/way`: a row for each, and their means."""
    lines = [
        "| way | seed | reward before | after | gain | in standard errors | tokens of wrong answers before | after |",
        "| --- |" + " --- |" * 7,
    ]
    for way in WAYS:
        rows = {key.partition("/")[0]: each for key, each in results.items() if key.partition("/")[2] == way}
        for seed, each in rows.items():
            lines.append(_row(way, seed, each))
        if len(rows) > 1:
            found = list(rows.values())
            lines.append(_row(way, "mean", {key: mean(each[key] for each in found) for key in found[0]}))
    return "\n".join(lines)


def _row(way: str, seed: str, each: dict[str, float]) -> str:
    gain = each["after"] - each["before"]
    cells = f"{each['before']:.3f} | {each['after']:.3f} | {gain:+.3f} | {gain / each['se']:.1f}"
    return f"| {way} | {seed} | {cells} | {each['wrong_before']:.2f} | {each['wrong_after']:.2f} |"


def main() -> None:
    """Run what has not run, then print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("overrides", nargs="*", help="settings of all runs, such as grpo.max_steps=200")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    file = options.directory / "results.json"
    results = artifacts.read_json(file) if file.is_file() else {}
    for seed in options.seeds:
        for way in WAYS:
            if f"{seed}/{way}" not in results:
                results[f"{seed}/{way}"] = measure(options.directory, seed, way, options.overrides)
                artifacts.write_json(file, results)
    print(table(results))
    print(f"\n{max(each['minutes'] for each in results.values()):.1f} minutes at most, all stages of a run together")


if __name__ == "__main__":
    main()
