"""A byte-level BPE of 1024 tokens, to try another tokenizer on the tiny model, learnt from the package documentation.

It has the special tokens and the chat template of the tiny model's own, of which every byte is a token (tiny.py).
"""

from __future__ import annotations

from pathlib import Path

from bielik_nemo.data.builtin import new_directory
from bielik_nemo.data.text import PACKAGE_DOCS, read_documents
from bielik_nemo.data.tiny import SPECIAL_TOKENS, chatting

SIZE = 1024


def build(directory: Path) -> None:
    """Write it to `directory`, which appears only when complete. Raises `CheckpointError` if it cannot."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in read_documents(PACKAGE_DOCS)), trainer)
    with new_directory(directory) as unfinished:
        chatting(tokenizer).save_pretrained(unfinished)
