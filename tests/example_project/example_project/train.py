"""Recipes imported, changed, and run by NeMo-Run."""

import sys

import nemo_run as run

from bielik_nemo.recipes import bielik_minitron_7b
from bielik_nemo.recipes.recipe import Recipe

BRIEF = Recipe("brief")
OWN = "hydra.searchpath=[pkg://example_project.conf]"


def main(run_dir: str, *overrides: str) -> None:
    """Show a published recipe with a change, and carry out the first stages of this project's own."""
    published = bielik_minitron_7b.distill(num_nodes=4, overrides=["optim.lr=1e-4"])
    published.trainer.max_steps = 100
    print("published:", published.trainer.num_nodes, published.trainer.max_steps, published.optim.config.lr)

    task = BRIEF.pipeline(run_dir, overrides=[OWN, "pipeline.stages=[import_hf,tasks]", *overrides])
    with run.Experiment("brief", executor=run.LocalExecutor()) as experiment:
        experiment.add(task, name="tasks")
        experiment.run(detach=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
