"""Merging Hugging Face checkpoints of one shape, tensor by tensor, without building a model.

The arithmetic is in align/merge.py. Memory holds one tensor of each source, what becomes of them, and a shard of
output. Files are closed after every tensor: what has been read of a mapped file stays in memory for as long as it is
open.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from bielik_nemo import ui
from bielik_nemo.align.merge import slerp, weighted_mean
from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import convert, distributed
from bielik_nemo.engine.hf_reader import SafetensorsReader, check_source, expected_shapes


def merge(
    sources: Sequence[Path],
    weights: Sequence[float],
    method: str,
    target: Path,
    a: Architecture,
    tokenizer: Path | None = None,
    dtype: str = "bfloat16",
    max_shard_gib: float = 1.0,
) -> dict[str, float]:
    """Write the mean of several checkpoints; `target` appears only when complete.

    Args:
        sources: Hugging Face directories, in any dtype.
        weights: one for each, none below zero; their sum is positive.
        method: "linear", or of two sources "slerp".
        target: where to write; replaced if it exists.
        a: shape of all of them.
        tokenizer: directory whose tokenizer files are copied along; None: none.
        dtype: of the written tensors.
        max_shard_gib: size of an output file, in GiB, which memory holds.

    Returns:
        With "slerp" the angle between the two, in radians, by tensor; else nothing.

    Raises:
        CheckpointError: a source is incomplete, damaged, or not of this shape.
    """
    readers = [check_source(source, a) for source in sources]
    angles: dict[str, float] = {}
    with distributed.whole_directory(target) as partial:
        tensors = _merged_tensors(readers, weights, method, a, angles)
        convert.write_hf(tensors, partial, a, tokenizer, max_shard_gib, dtype)
    return angles


def _merged_tensors(
    readers: Sequence[SafetensorsReader],
    weights: Sequence[float],
    method: str,
    a: Architecture,
    angles: dict[str, float],
) -> Iterator[tuple[str, Tensor]]:
    names = expected_shapes(a)
    with ui.progress("merging", len(names)) as advance:
        for name, shape in names.items():
            each = (reader.read(name, 0, 0, shape[0]) for reader in readers)
            if method == "slerp":
                merged, angles[name] = slerp(*each, share=weights[1] / sum(weights))
            else:
                merged = weighted_mean(each, weights)
            for reader in readers:
                reader.close()
            yield name, merged
            del merged
            advance()
