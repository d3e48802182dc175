import hashlib
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bielik_nemo.data import tiny
from bielik_nemo.data.text import PACKAGE_DOCS, read_documents


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    tiny.build(directory)
    return directory


def test_parameter_count_is_that_of_the_stated_shape(checkpoint: Path):
    """Hidden 64, FFN 160, 4 heads and 2 groups of 32, vocabulary 263, untied.

    Attention: q and o 64*128 each, k and v 64*64 each: 24,576. MLP: 3*64*160 = 30,720. Norms: 2*64 = 128.
    Layer: 55,424; four: 221,696. Embedding and output: 2*263*64 = 33,664. Final norm: 64. Sum: 255,424.
    """
    model, info = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == 255_424
    assert not any(info.values())
    assert model.config.rope_theta == 1e6
    assert model.dtype == torch.float32


def test_predicts_text_far_better_than_letter_frequencies(checkpoint: Path):
    """Letter frequencies of this text give about 3.6 nats per byte; the model must be below 3 and 0.5 better."""
    text = "".join(document.text for document in read_documents(PACKAGE_DOCS))[:200_000]
    tokens = AutoTokenizer.from_pretrained(checkpoint)(text, return_tensors="pt").input_ids[0]
    share = torch.bincount(tokens).double() / len(tokens)
    unigram = -torch.xlogy(share, share).sum().item()
    batch = tokens[: len(tokens) // 256 * 256].view(-1, 256)[::16]
    with torch.inference_mode():
        loss = AutoModelForCausalLM.from_pretrained(checkpoint)(input_ids=batch, labels=batch).loss.item()
    assert loss < 3.0
    assert loss < unigram - 0.5
    assert unigram < math.log(263)


def test_token_ids_are_byte_values_then_special_tokens(checkpoint: Path):
    """'ź' is the bytes c5 ba = 197, 186; the special tokens follow the 256 bytes in order."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert len(tokenizer) == 263
    assert tokenizer("aź\n").input_ids == [97, 197, 186, 10]
    assert tokenizer.convert_tokens_to_ids(list(tiny.SPECIAL_TOKENS)) == list(range(256, 263))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 260, 258)
    every = "".join(map(chr, range(1, 0x800))) + "日本語🎉"
    assert tokenizer(every).input_ids == list(every.encode())
    assert tokenizer.decode(tokenizer(every).input_ids) == every


def test_chat_template_is_chatml(checkpoint: Path):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    chat = [{"role": "user", "content": "Cześć"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nCześć<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(chat)[0] == 259


def test_same_seed_gives_the_same_bytes_and_leaves_global_state_alone(tmp_path: Path, checkpoint: Path, monkeypatch):
    def digest(directory: Path) -> dict[str, str]:
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir()}

    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    tiny.build(tmp_path / "again")
    assert digest(tmp_path / "again") == digest(checkpoint)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads

    monkeypatch.setattr(tiny, "_STEPS", 2)
    tiny.build(tmp_path / "other", seed=1)
    other = digest(tmp_path / "other")
    assert other["tokenizer.json"] == digest(checkpoint)["tokenizer.json"]
    assert other["model.safetensors"] != digest(checkpoint)["model.safetensors"]
