"""Bielik-PL-Minitron-7B (arXiv 2604.10799): another tokenizer, as NeMo-Run tasks; see bielik_minitron_7b.py."""

from bielik_nemo.recipes.recipe import Recipe

recipe = Recipe("bielik_pl_minitron_7b")
swap_tokenizer, adapt, pretrain = recipe.swap_tokenizer, recipe.adapt, recipe.pretrain
sft, dpo, grpo, export, pipeline = recipe.sft, recipe.dpo, recipe.grpo, recipe.export, recipe.pipeline
