"""Benchmarks of ours in lm-evaluation-harness's own format, with the few functions that they name."""
