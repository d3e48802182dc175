"""Published recipes as NeMo-Run tasks, one module each."""
