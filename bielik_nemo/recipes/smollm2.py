"""SmolLM2-135M cut and taught on a laptop, as NeMo-Run tasks: `experiment=smollm2`; see bielik_minitron_7b.py."""

from bielik_nemo.recipes.recipe import Recipe

recipe = Recipe("smollm2")
prune, distill, sft, dpo, grpo = recipe.prune, recipe.distill, recipe.sft, recipe.dpo, recipe.grpo
export, pipeline = recipe.export, recipe.pipeline
