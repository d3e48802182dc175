"""A decoder small enough for tests, yet trained: a byte-level Llama of 255,424 parameters, made in about 4 seconds.

Its numbers catch mistakes that rounder ones hide: head_dim 32 is not hidden/heads (16), the vocabulary of 263 is prime,
the RoPE base is not the default, 4 heads share 2 groups, and the FFN of 160 can shrink by multiples of 16 or 32. It
learns the package documentation down to about 2.8 nats per byte, where the letter frequencies alone give 3.6 and
guessing gives ln 263 = 5.6, so that a check which refuses a teacher that predicts nothing lets it pass.

The same seed, machine and installed packages give the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bielik_nemo.data.builtin import new_directory
from bielik_nemo.data.text import PACKAGE_DOCS, read_documents

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")
"""Tokens 256 to 262; tokens 0 to 255 are the bytes themselves."""
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_STEPS, _BATCH_SIZE, _SEQ_LENGTH, _LEARNING_RATE = 300, 4, 64, 5e-3


def build(directory: Path, seed: int = 0) -> None:
    """Write the checkpoint to `directory`, which appears only when complete. Raises `CheckpointError` if it cannot."""
    tokenizer = byte_tokenizer()
    model = _train(_training_bytes(tokenizer.eos_token_id), seed)
    with new_directory(directory) as unfinished:
        model.save_pretrained(unfinished, safe_serialization=True)
        tokenizer.save_pretrained(unfinished)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte, with the byte's value as its id, then `SPECIAL_TOKENS`; ends with `<|im_end|>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    tokenizer = Tokenizer(models.BPE(vocab={char: byte for byte, char in bytes_to_unicode().items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return chatting(tokenizer)


def chatting(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer that has `SPECIAL_TOKENS`, with their meanings and a chat template."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        chat_template=_CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],  # generate() refuses the usual token_type_ids
    )


def _model() -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256 + len(SPECIAL_TOKENS),
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=1024,
            rms_norm_eps=1e-5,
            rope_theta=1e6,
            initializer_range=0.1,  # about 1 / sqrt(hidden); the usual 0.02 is slow to leave at this width
            bos_token_id=256,
            eos_token_id=260,
            pad_token_id=258,
            tie_word_embeddings=False,
            dtype="float32",
        )
    )


def _training_bytes(eos: int) -> torch.Tensor:
    """All package documentation as one row of byte tokens `[n]`, each document closed by `eos`."""
    import torch

    tokens: list[int] = []
    for document in read_documents(PACKAGE_DOCS):
        tokens += [*document.text.encode(), eos]
    return torch.tensor(tokens)


def _train(data: torch.Tensor, seed: int) -> LlamaForCausalLM:
    """Next-byte training of a fresh model on random windows of `data` `[n]`, with AdamW and a one-cycle rate."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one fixed order
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _model().train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.95))
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=_STEPS, pct_start=0.1)
            window = torch.arange(_SEQ_LENGTH)
            for _ in range(_STEPS):
                start = torch.randint(len(data) - _SEQ_LENGTH, (_BATCH_SIZE, 1))
                batch = data[start + window]  # [b, s]
                model(input_ids=batch, labels=batch).loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    finally:
        torch.set_num_threads(threads)
    return model.eval()
