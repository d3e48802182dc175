"""Tokenizers in llama.cpp's terms: it must give the ids that transformers gives."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from bielik_nemo.architecture import Architecture
from bielik_nemo.data import smollm2
from bielik_nemo.data.tokenizer import load_tokenizer
from bielik_nemo.errors import CheckpointError, DataError
from bielik_nemo.formats import gguf_vocabulary, llama
from bielik_nemo.stages.quantize import PROBE

pytest.importorskip("llama_cpp", reason='needs llama_cpp: pip install "bielik_nemo[gguf]"')

TEXTS = [PROBE, "Ala ma kota.", " leading", "<|im_start|>user\nkto?<|im_end|>\n", "a  b   c", "€", ""]


def shape(vocab_size: int) -> Architecture:
    return Architecture(
        num_layers=1,
        hidden_size=32,
        ffn_hidden_size=32,
        num_attention_heads=1,
        num_query_groups=1,
        head_dim=32,
        vocab_size=vocab_size,
        max_position_embeddings=8,
        tie_embeddings=False,
    )


def ids(directory: Path, vocab_size: int) -> dict[str, list[int]]:
    tokenizer = load_tokenizer(directory, vocab_size)
    return {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS}


def sentencepiece(directory: Path) -> None:
    """Mistral's kind by hand: 3 control tokens, 256 bytes, letters, and pieces in the order of the merges."""
    merges = [("▁", "m"), ("▁m", "a"), ("k", "o"), ("t", "a"), ("ko", "ta"), ("▁", "kota"), ("▁", "▁")]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [*"▁abcdefghijklmnoprstuwyzAł.,\n", *("".join(pair) for pair in merges)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    bpe = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fast.save_pretrained(directory)


def test_bytes(tiny_hf: Path):
    """Special tokens are control tokens; the rows that no token has are called by their number; nothing is added."""
    found = gguf_vocabulary.read(tiny_hf, 272)
    assert (found.kind, len(found.tokens), found.tokens[263], found.tokens[260]) == (
        "gpt2",
        272,
        "[PAD263]",
        "<|im_end|>",
    )
    assert (found.types[0], found.types[260], found.types[263]) == (1, 3, 5)
    assert found.special == {"bos": 256, "eos": 260, "pad": 258}
    assert not any(found.adds.values()) and "<|im_start|>" in found.chat_template
    assert llama.word_rule(shape(272), found, ids(tiny_hf, 272)) in llama.WORD_RULES


def test_sentencepiece(tmp_path: Path):
    """A score is minus the place of the first merge that makes the piece: ▁m 0, ▁ma 1, kota 4, ▁kota 5 of 7 merges."""
    sentencepiece(tmp_path)
    found = gguf_vocabulary.read(tmp_path, 320)
    score = dict(zip(found.tokens, found.scores, strict=True))
    assert [score[piece] for piece in ("▁m", "▁ma", "kota", "▁kota", "a")] == [0, -1, -4, -5, -7]
    assert (found.kind, found.adds["space_prefix"]) == ("llama", True)
    assert [found.types[index] for index in (0, 1, 3, 260)] == [2, 3, 6, 1]
    expected = ids(tmp_path, 320)
    assert found.tokens[expected["Ala ma kota."][-2]] == "▁kota"
    assert llama.word_rule(shape(320), found, expected) == "default"


def test_a_real_vocabulary(tmp_path: Path):
    try:
        from gguf import GGUFReader

        smollm2.hf_tokenizer(GGUFReader(smollm2.find_gguf())).save_pretrained(tmp_path)
    except CheckpointError as error:
        pytest.skip(str(error))
    found = gguf_vocabulary.read(tmp_path, 49152)
    texts = {text: expected for text, expected in ids(tmp_path, 49152).items() if text != PROBE}
    assert llama.word_rule(shape(49152), found, texts) == "smollm"


def test_what_llama_cpp_does_not_do_is_refused(tiny_hf: Path, tmp_path: Path):
    tokenizer = load_tokenizer(tiny_hf, 263)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"llama\.cpp cannot tokenise as this model's tokenizer does.*Za"):
        llama.word_rule(shape(263), gguf_vocabulary.read(tmp_path, 263), ids(tmp_path, 263))


def test_other_kinds_are_refused(tmp_path: Path):
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="a").save_pretrained(tmp_path)
    with pytest.raises(DataError, match="type Unigram, allowed for GGUF: BPE over bytes"):
        gguf_vocabulary.read(tmp_path, 8)
