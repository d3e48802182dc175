"""Published recipes as NeMo-Run tasks, one module each; importing this registers all with NeMo-Run's command line."""

from bielik_nemo.recipes import bielik_minitron_7b, smollm2

__all__ = ["bielik_minitron_7b", "smollm2"]
