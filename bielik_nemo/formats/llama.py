"""llama.cpp through its Python binding: tokenising, the loss on given token ids, and quantising a GGUF file.

Its C interface is used as it is: the binding's own class keeps the logits of a whole context, which for a large
vocabulary is more than the model, and closes the process's output while it loads.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bielik_nemo.architecture import Architecture
from bielik_nemo.errors import CheckpointError, DataError
from bielik_nemo.formats import gguf_file
from bielik_nemo.formats.gguf_vocabulary import Vocabulary

BATCH = 512
"""Tokens of a forward pass, whose logits are in memory."""
WARNING, ERROR, CONTINUED = 3, 4, 5
"""ggml's levels of messages; the last goes on with the message before it."""
WORD_RULES = ("smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "gpt-2")
"""llama.cpp's names of rules that cut text into words, of the families that are read here and their tokenizers."""


@contextlib.contextmanager
def opened(path: Path, vocabulary_only: bool = False) -> Iterator[Any]:
    """A model as llama.cpp loads it.

    Raises:
        CheckpointError: it does not.
    """
    llama_cpp = _library()

    settings = llama_cpp.llama_model_default_params()
    settings.vocab_only = vocabulary_only
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
    if not model:
        raise CheckpointError(f"{path}: llama.cpp cannot load it; the stage's log has its reason")
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)


def tokenize(model: Any, text: str) -> list[int]:
    """Token ids of a text, special tokens in it recognised, none put around it."""
    llama_cpp = _library()

    vocabulary, content = llama_cpp.llama_model_get_vocab(model), text.encode()
    ids = (ctypes.c_int32 * (len(content) + 2))()  # never more than bytes, and a space before them
    count = llama_cpp.llama_tokenize(vocabulary, content, len(content), ids, len(ids), False, True)
    return list(ids[:count])


def word_rule(a: Architecture, vocabulary: Vocabulary, texts: dict[str, list[int]]) -> str:
    """The name under which llama.cpp cuts these texts into the same tokens as the model's own tokenizer.

    Args:
        a: shape of the model.
        vocabulary: of its tokenizer.
        texts: texts, each with the ids that the tokenizer gives for it.

    Raises:
        DataError: under no name that is known here.
    """
    differing = ""
    with tempfile.TemporaryDirectory() as scratch:
        for name in WORD_RULES if vocabulary.kind == "gpt2" else ("default",):
            path = Path(scratch, f"{name}.gguf")
            gguf_file.write_vocabulary(path, a, vocabulary, name)
            with opened(path, vocabulary_only=True) as model:
                wrong = next((text for text, ids in texts.items() if tokenize(model, text) != ids), None)
            if wrong is None:
                return name
            differing = differing or wrong
    raise DataError(
        f"quantize.formats: llama.cpp cannot tokenise as this model's tokenizer does, for example {differing[:60]!r}; "
        "leave the gguf formats out"
    )


def loss(path: Path, blocks: Tensor, on_block: Callable[[], None] = lambda: None) -> float:
    """Mean cross-entropy of a GGUF file in nats per token.

    Args:
        path: of the file.
        blocks: token ids `[n, s + 1]`, each row a context of its own.
        on_block: called once a row is through.

    Raises:
        CheckpointError: llama.cpp cannot load or run it.
    """
    llama_cpp = _library()

    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = blocks.shape[1] - 1
    settings.n_batch = settings.n_ubatch = min(BATCH, settings.n_ctx)
    settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
    with opened(path) as model:
        words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        context = llama_cpp.llama_init_from_model(model, settings)
        if not context:
            raise CheckpointError(f"{path}: llama.cpp has no room for {settings.n_ctx} tokens")
        batch = llama_cpp.llama_batch_init(settings.n_batch, 0, 1)
        total = 0.0
        try:
            for block in blocks:
                llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
                for start in range(0, len(block) - 1, settings.n_batch):
                    ids, targets = block[start:-1][: settings.n_batch], block[start + 1 :][: settings.n_batch]
                    _fill(batch, ids.tolist(), start)
                    if llama_cpp.llama_decode(context, batch):
                        raise CheckpointError(f"{path}: llama.cpp cannot run it; the stage's log has its reason")
                    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(ids), words))
                    total += functional.cross_entropy(torch.from_numpy(logits), targets, reduction="sum").item()
                on_block()
        finally:
            llama_cpp.llama_batch_free(batch)
            llama_cpp.llama_free(context)
    return total / blocks[:, 1:].numel()


def quantize(source: Path, target: Path, kind: str, importance: dict[str, Tensor]) -> None:
    """Write a GGUF file in another format.

    Args:
        source: the file in float16.
        target: where to write.
        kind: such as `q4_k_m`.
        importance: mean squared inputs `[columns]` of matrices, by their names in GGUF; none: all count alike.

    Raises:
        CheckpointError: llama.cpp refuses.
    """
    llama_cpp = _library()

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread = torch.get_num_threads()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    if importance:
        # The arrays must outlive the call; the last entry, without a name, ends the table.
        held = {name: np.ascontiguousarray(value.float().numpy()) for name, value in importance.items()}
        table = (llama_cpp.llama_model_imatrix_data * (len(held) + 1))()
        for entry, (name, value) in zip(table, held.items(), strict=False):
            entry.name = name.encode()
            entry.data = value.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.size = value.size
        settings.imatrix = table
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings)):
        raise CheckpointError(f"{target}: llama.cpp cannot write it as {kind}; the stage's log has its reason")


@functools.cache
def _library() -> ModuleType:
    """The binding, which has llama.cpp write what it warns of and fails at into this process's log, and no more."""
    import llama_cpp

    llama_cpp.llama_log_set(_log(), ctypes.c_void_p(0))
    return llama_cpp


@functools.cache  # ctypes frees what nobody holds
def _log() -> Any:
    """What llama.cpp calls with each message.

    The binding's own (0.3.36) takes ggml's levels for others than they are: it shows every detail, and no error once it
    is asked for less.
    """
    import llama_cpp

    shown = False

    @llama_cpp.llama_log_callback
    def log(level: int, text: bytes, data: ctypes.c_void_p) -> None:
        nonlocal shown
        shown = shown if level == CONTINUED else level in (WARNING, ERROR)
        if shown:
            print(text.decode(errors="replace"), end="", file=sys.stderr, flush=True)

    return log


def _fill(batch: Any, ids: Sequence[int], start: int) -> None:
    """Put consecutive tokens of sequence 0 into a batch; the logits of all are wanted."""
    batch.n_tokens = len(ids)
    for index, token in enumerate(ids):
        batch.token[index] = token
        batch.pos[index] = start + index
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = 0
        batch.logits[index] = 1
