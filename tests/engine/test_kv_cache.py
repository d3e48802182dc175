"""The KV cache by hand, and why it is not Megatron's own; what comes of it is in test_megatron_rollout.py."""

from __future__ import annotations

import inspect

import pytest
import torch
from test_upstream import found

from bielik_nemo.engine.kv_cache import CachedReader, KVCache


def cache(texts: int = 3) -> KVCache:
    """One layer with a key and value head of one number: token t of text i has key 10 i + t and value -key."""
    made = KVCache(texts, 9)
    made.append(1, *numbers(texts, 0, 2))
    made.sequence_len_offset = 2
    return made


def numbers(texts: int, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    keys = (10 * torch.arange(texts)[None] + torch.arange(start, end)[:, None]).float()[:, :, None, None]
    return keys, -keys


def test_what_is_added_comes_behind_what_is_there(monkeypatch):
    monkeypatch.setattr("bielik_nemo.engine.kv_cache.ROOM", 0)  # it grows each time
    keys, values = cache().append(1, *numbers(3, 2, 3))
    assert keys[:, 0, :, 0].tolist() == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]
    assert values.equal(-keys)


def test_rows_are_repeated_and_moved():
    """Texts 2, 0, 0, 1; then the last takes the place of the first, and three are left."""
    made = cache()
    made.repeat(torch.tensor([2, 0, 0, 1]))
    made.move([3], [0], 3)
    keys, values = made.append(1, *numbers(3, 7, 8))
    assert keys[:, 0, :, 0].tolist() == [[10, 11, 7], [0, 1, 17], [0, 1, 27]]
    assert values.equal(-keys)


@pytest.mark.parametrize(
    ("window", "rows"),
    [
        (None, [["1000", "1100", "1110", "1111"], ["1000", "0100", "0110", "0111"]]),
        ((1, 0), [["1000", "1100", "0110", "0011"], ["1000", "0100", "0110", "0011"]]),
    ],
)
def test_what_may_be_looked_at(window, rows):
    """Texts of 4 and 3 tokens: the pad before the second sees itself alone; a window is two tokens."""
    reader = CachedReader.__new__(CachedReader)
    reader.pads, reader.window = torch.tensor([0, 1]), window
    seen = reader._visible(torch.arange(4))[:, 0]
    assert [["".join(str(int(each)) for each in row) for row in text] for text in seen] == rows
    assert reader._visible(torch.tensor([3])).equal(seen[:, None, 3:])


def test_one_token_that_sees_all_needs_no_mask():
    reader = CachedReader.__new__(CachedReader)
    reader.pads, reader.window = torch.tensor([0, 0]), None
    assert reader._visible(torch.tensor([3])) is None


def test_megatron_still_keeps_keys_without_their_positions():
    """Why keys are kept here: it turns all of them for every token. When this fails, look whether it still does."""
    source = inspect.getsource(found("megatron.core.transformer.attention:Attention._adjust_key_value_for_inference"))
    assert "k_pos_emb = k_pos_emb[:sequence_end, :, :, :]" in source


def test_megatron_still_repeats_keys_for_every_head():
    """Why attention is torch's while a cache is read."""
    forward = found("megatron.core.transformer.dot_product_attention:DotProductAttention.forward")
    assert "key.repeat_interleave(" in inspect.getsource(forward)


def test_megatron_still_wraps_its_steps_in_inference_mode():
    """Why what it calls is called: a rotary embedding from there could not be saved for a backward pass."""
    wrapper = "megatron.core.inference.model_inference_wrappers.gpt.gpt_inference_wrapper:GPTInferenceWrapper"
    assert "@torch.inference_mode()" in inspect.getsource(found(f"{wrapper}.run_one_forward_step"))
