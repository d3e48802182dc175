"""Compress and align a large language model for its own language with NeMo, Megatron-Core and Model Optimizer."""

__version__ = "0.1.0"
