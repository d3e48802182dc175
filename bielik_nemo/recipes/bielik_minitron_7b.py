"""Bielik-Minitron-7B (arXiv 2603.11881) as NeMo-Run tasks, whose defaults are those of `experiment=bielik_minitron_7b`.

    from bielik_nemo.recipes import bielik_minitron_7b

    task = bielik_minitron_7b.distill(run_dir="/runs/mine", num_nodes=2, overrides=["model.source=/models/Bielik-11B"])
    task.trainer.max_steps = 100

recipe.py says what the arguments are, task.py what a task is and leaves.
"""

from bielik_nemo.recipes.recipe import Recipe

recipe = Recipe("bielik_minitron_7b")
prune, distill, sft, dpo, grpo = recipe.prune, recipe.distill, recipe.sft, recipe.dpo, recipe.grpo
export, pipeline = recipe.export, recipe.pipeline
