"""A Hugging Face checkpoint with another vocabulary: its embeddings made anew, every other tensor as it was.

Tensor by tensor, without building a model; memory holds both embedding matrices of one kind and a shard of output.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from bielik_nemo.architecture import Architecture
from bielik_nemo.data import focus
from bielik_nemo.engine import convert, distributed
from bielik_nemo.engine.hf_reader import SafetensorsReader, check_source, expected_shapes

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def swap(
    source: Path,
    target: Path,
    before: Architecture,
    after: Architecture,
    planned: focus.Plan,
    tokenizer: Path,
    dtype: str,
    seed: int,
    max_shard_gib: float = 1.0,
) -> None:
    """Write the checkpoint; `target` appears only when complete.

    Args:
        source: Hugging Face directory, in any dtype.
        target: where to write; replaced if it exists.
        before: shape of the source.
        after: the same with the new vocabulary.
        planned: where the rows of the new embeddings come from.
        tokenizer: directory of the new tokenizer, whose files are copied along.
        dtype: of the written tensors.
        seed: of the rows that are drawn.
        max_shard_gib: size of an output file, in GiB, which memory holds.

    Raises:
        CheckpointError: the source is incomplete, damaged, or not of this shape.
    """
    reader = check_source(source, before)
    with distributed.whole_directory(target) as partial:
        tensors = _tensors(reader, after, planned, seed)
        convert.write_hf(tensors, partial, after, tokenizer, max_shard_gib, dtype)


def _tensors(
    reader: SafetensorsReader, after: Architecture, planned: focus.Plan, seed: int
) -> Iterator[tuple[str, Tensor]]:
    for name in expected_shapes(after):
        value = reader.read(name, 0, 0, reader.shape(name)[0])
        if name in EMBEDDINGS:
            # Each matrix draws its own rows.
            value = focus.embeddings(value, planned, seed + EMBEDDINGS.index(name))
        yield name, value
        reader.close()
