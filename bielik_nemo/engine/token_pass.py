"""The pass of a model over answers that are there: the log-probability of every token, as the trainer computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from bielik_nemo.data import packing
from bielik_nemo.engine import attention, distributed, forward
from bielik_nemo.engine.conversation_data import Weighted, lay
from bielik_nemo.engine.policy import Policy

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel


def measure(
    model: GPTModel, policy: Policy, conversations: Sequence[Weighted], seq_length: int, micro_batch_size: int
) -> list[np.ndarray]:
    """Log-probability of each token that counts, of each conversation, in nats, float32; the same on every rank.

    Args:
        model: this rank's part.
        policy: at whose temperature.
        conversations: prompts with their answers, of which the answers count; data-parallel ranks share them.
        seq_length: tokens of a sequence, in which as many stand as fit.
        micro_batch_size: sequences of a forward pass.
    """
    from megatron.core import parallel_state

    counted = [int((each.weights > 0).sum()) for each in conversations]
    first = np.cumsum([0, *counted])
    found = torch.zeros(int(first[-1]), device=distributed.device())
    packed = list(packing.pack(np.array([len(each.ids) - 1 for each in conversations]), seq_length))
    # Transformer Engine takes the bounds of one sequence at a time.
    size = 1 if attention.HAVE_TE else micro_batch_size
    work = [packed[start : start + size] for start in range(0, len(packed), size)]
    rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    leads = parallel_state.get_tensor_model_parallel_rank() == 0  # of the ranks that have the same numbers

    def laid(sequences: list[np.ndarray]) -> dict[str, Any]:
        batch = default_collate([lay([conversations[i] for i in each], seq_length) for each in sequences])
        batch["words"] = batch.pop("labels")  # else the model returns losses
        places = [np.concatenate([np.arange(first[i], first[i + 1]) for i in each]) for each in sequences]
        return batch | {"places": torch.from_numpy(np.concatenate(places))}

    def keep(logits: Tensor, batch: Any) -> None:
        words, mask = (batch[name].to(logits.device) for name in ("words", "loss_mask"))
        each = policy.log_probs(logits.transpose(0, 1), words.transpose(0, 1)).transpose(0, 1)
        if leads:
            found[batch["places"].to(found.device)] = each[mask > 0]

    forward.passes(model, map(laid, work[rank::ranks]), keep)
    if distributed.world_size() > 1:
        torch.distributed.all_reduce(found)
    return np.split(found.cpu().numpy(), first[1:-1])
