"""The parity gate: a Megatron model and plain `transformers` must give the same logits for the same tokens.

Both run in float32, on weights rounded to the stored dtype, so that the tolerance means the conversion and nothing
else. Tokens are drawn from the whole vocabulary (a permuted or shifted embedding shows at once); held-out text may be
added.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bielik_nemo.architecture import Architecture
from bielik_nemo.engine import distributed, forward
from bielik_nemo.engine.model import DTYPES
from bielik_nemo.errors import CheckpointError, GateError

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

SEQUENCE = 128


def probe_tokens(vocab_size: int, tokens: int, seed: int, text: Tensor | None = None) -> Tensor:
    """Token ids `[n, SEQUENCE]`: half held-out text where given, the rest drawn evenly from the vocabulary."""
    rows = max(tokens // SEQUENCE, 2)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, vocab_size, (rows, SEQUENCE), generator=generator)
    if text is not None:
        head = text.flatten()[: (rows // 2) * SEQUENCE]
        drawn[: len(head) // SEQUENCE] = head[: len(head) // SEQUENCE * SEQUENCE].view(-1, SEQUENCE)
    return drawn


@torch.no_grad()
def check(model: GPTModel, hf: Path, a: Architecture, tokens: Tensor, dtype: str, tolerance: float) -> dict[str, Any]:
    """Compare logits and return what was found, on every rank.

    Args:
        model: this rank's part, in float32.
        hf: Hugging Face directory, loaded by rank 0 with plain transformers.
        a: shape of the whole model.
        tokens: ids `[n, s]`.
        dtype: stored dtype, to which the Hugging Face weights are rounded; the model's must have been.
        tolerance: largest absolute difference allowed.

    Raises:
        CheckpointError: transformers cannot load the directory completely.
        GateError: the logits differ by more than the tolerance, or are not finite.
    """
    reference = _load(hf, DTYPES[dtype]) if distributed.rank() == 0 else None
    worst = 0.0
    for row in tokens.split(1):
        found = forward.logits(model, row, a.vocab_size)
        if reference is not None:
            difference = (found - reference(row).logits).abs().max().item()
            worst = max(worst, difference) if difference == difference else float("inf")
    worst = distributed.from_first(worst)
    result = {"max_abs_logit_diff": worst, "tolerance": tolerance, "tokens": tokens.numel(), "dtype": dtype}
    if not worst <= tolerance:
        raise GateError(
            f"{hf}: logits differ from the Megatron model's by {worst:.3g}, "
            f"export.parity_tolerance={tolerance:g} is allowed"
        )
    return result


def _load(directory: Path, dtype: torch.dtype) -> Any:
    """The model as plain transformers sees it, in float32; incomplete checkpoints are refused."""
    from transformers import AutoModelForCausalLM

    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            directory, torch_dtype=dtype, output_loading_info=True, trust_remote_code=False, attn_implementation="eager"
        )
    except Exception as error:
        raise CheckpointError(f"{directory}: transformers cannot load it ({error})") from error
    problems = {key: sorted(value) for key, value in info.items() if value and key != "error_msgs"}
    if problems:
        raise CheckpointError(f"{directory}: transformers loads it incompletely: {problems}")
    return model.float().eval()
