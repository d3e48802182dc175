"""What the trainer is fed: tokens as they were written, whatever the tokenizer calls padding."""

from __future__ import annotations

import ranks
import torch

from bielik_nemo.engine import datasets


def stream(inputs, name: str = "train") -> torch.Tensor:
    """All tokens of a training set in order."""
    return torch.cat([torch.from_numpy(ids) for ids in datasets.documents(inputs / name)])


def test_no_token_of_the_text_is_taken_for_padding(single, inputs):
    """The tokenizer pads with its end-of-text token 260, which ends every document.

    Megatron would read it as token 0 and leave it out of the loss, here and at the same places of all later samples.
    """
    for kind in ("llama", "cached"):
        single[f"distill {kind}"]
        batch = torch.load(single.path / kind / "batch.pt", weights_only=True)
        assert batch["loss_mask"].min() == 1
        assert (batch["labels"] == 260).any() or (batch["tokens"] == 260).any()
        assert torch.equal(batch["tokens"][:, 1:], batch["labels"][:, :-1])
        text = torch.cat([stream(inputs, name) for name in ranks.BLEND])
        windows = {tuple(w.tolist()) for w in text.unfold(0, 33, 1)}
        samples = torch.cat([batch["tokens"], batch["labels"][:, -1:]], dim=1)
        # A sample may run over the end of a shuffled document into another: look for its parts between the ends.
        for sample in samples.tolist():
            ends = [i for i, token in enumerate(sample) if token == 260]
            if not ends:
                assert tuple(sample) in windows
            else:
                head = sample[: ends[0] + 1]
                assert any(list(w) == head for w in text.unfold(0, len(head), 1).tolist())


def test_megatron_still_takes_the_pad_token_in_the_text_for_padding():
    """Why `TextDataset` is there; when this fails, it can go."""
    import inspect

    from megatron.core.datasets.gpt_dataset import GPTDataset

    source = inspect.getsource(GPTDataset)
    assert "loss_mask[labels == self._pad_token_id] = 0.0" in source
    assert "tokens[tokens == self._pad_token_id] = 0" in source


def test_every_prediction_counts_the_same_in_held_out_blocks(inputs):
    """Blocks keep the end-of-text tokens too."""
    blocks = datasets.blocks(inputs / "train", 32, 10_000)
    assert (blocks == 260).sum() > 10
    assert torch.equal(blocks[:, :-1].flatten(), stream(inputs)[: blocks.shape[0] * 32])
