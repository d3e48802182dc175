"""What held-out text tells of a model: its loss, in bits per byte too, and how near it is to another model.

Nats per token compare models that share a tokenizer. Bits per byte compare any: the nats of all predictions over ln 2
and over the bytes of UTF-8 text that the predicted tokens stand for. The token that ends a document is predicted and
has no bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bielik_nemo.data.tokenizer import encode
from bielik_nemo.engine import forward
from bielik_nemo.errors import DataError
from bielik_nemo.losses import agreement, forward_kl, most_likely

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel
    from transformers import PreTrainedTokenizerBase


def bits_per_byte(loss: float, blocks: Tensor, byte_lengths: Tensor) -> float:
    """Bits per byte of UTF-8 text.

    Args:
        loss: mean nats per predicted token of these blocks.
        blocks: token ids `[n, s + 1]`; all but the first of each block are predicted.
        byte_lengths: `[v]`, of every token id.

    Raises:
        DataError: the predicted tokens stand for no text.
    """
    predicted = blocks[:, 1:]
    size = int(byte_lengths[predicted].sum())
    if not size:
        raise DataError("held-out text: the predicted tokens stand for no byte of text")
    return loss * predicted.numel() / math.log(2) / size


def retokenised(
    blocks: Tensor, ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, seq_length: int
) -> Tensor:
    """The text of some blocks in another tokenizer's words, as blocks of the same length `[m, s + 1]`.

    What does not fill the last block is left out, and so is a character that the last token has only a part of.

    Raises:
        DataError: it does not fill one block.
    """
    # Blocks overlap by one token.
    stream = torch.cat([blocks[0, :1], blocks[:, 1:].flatten()]).tolist()
    ids: list[int] = []
    document: list[int] = []
    for token in [*stream, ours.eos_token_id]:
        if token != ours.eos_token_id:
            document.append(token)
        elif document:
            text = ours.decode(document, clean_up_tokenization_spaces=False).rstrip("\N{REPLACEMENT CHARACTER}")
            ids += encode(theirs, text)
            document = []
    count = (len(ids) - 1) // seq_length
    if count < 1:
        raise DataError(f"held-out text: {len(ids)} tokens do not fill a block of data.seq_length={seq_length} + 1")
    return torch.tensor([ids[i * seq_length : (i + 1) * seq_length + 1] for i in range(count)])


def near(
    model: GPTModel,
    source: GPTModel,
    parts: Mapping[str, Tensor],
    vocab_size: int,
    batch_size: int,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """How near a model's predictions are to the source's, on one pipeline stage: the same on every rank.

    Args:
        model: this rank's part.
        source: this rank's part of the other, with the same vocabulary.
        parts: token ids `[n, s + 1]` by name.
        vocab_size: without padding.
        batch_size: blocks of a forward pass.
        on_batch: called twice for each batch.

    Returns:
        `kl`: mean KL(source || model) in nats per token; `top1`: share of the tokens whose likeliest successor is the
        same; `tokens`: how many.
    """
    from megatron.core import parallel_state

    words = {"vocab_size": vocab_size, "tp_group": parallel_state.get_tensor_model_parallel_group()}
    sums = torch.zeros(3, dtype=torch.float64)
    for blocks in parts.values():
        for batch in blocks[:, :-1].split(batch_size):
            (theirs,) = forward.run(source, [batch], lambda logits: logits, on_batch=on_batch)
            (ours,) = forward.run(model, [batch], lambda logits: logits, on_batch=on_batch)
            mask = torch.ones(batch.shape, device=ours.device)
            with torch.no_grad():
                kl, count = forward_kl(ours.float(), theirs, mask, **words)
                same, _ = agreement(ours, most_likely(theirs, **words), mask, **words)
            sums += torch.stack([kl, same, count]).double().cpu()
    kl, same, count = sums.tolist()
    return {"kl": kl / count, "top1": same / count, "tokens": int(count)}
