"""The only room that imports nemo, lightning, megatron and modelopt.

Every entry point calls `cpu.enable()` before its first such import, so that the same code runs with and without CUDA.
"""
