"""Loading a tokenizer: what is refused, in one clear error, and that nothing in its directory is ever run.

The tokenizer is the tiny model's: 256 bytes and 7 special tokens, ids 0 to 262, end of text 260.
"""

import json
import os
from pathlib import Path

import pytest

from bielik_nemo.data import tokenizer as tokenizers
from bielik_nemo.data.text import Document, read_documents
from bielik_nemo.data.tiny import byte_tokenizer
from bielik_nemo.data.tokenizer import byte_lengths, check_same_words, encode, encode_all, load_tokenizer
from bielik_nemo.errors import DataError

POLISH = os.environ.get("BIELIK_NEMO_POLISH_TEXTS", "")  # a directory of Polish books


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def error_of(directory: Path, vocab_size: int = 263) -> str:
    with pytest.raises(DataError) as error:
        load_tokenizer(directory, vocab_size)
    assert str(error.value).startswith(f"{directory}: ")
    return str(error.value)


def test_loads_the_saved_tokenizer(directory: Path):
    """A vocabulary of 263 has ids up to 262, the largest that the tokenizer gives; more rows than ids are fine."""
    for vocab_size in (263, 32128):
        tokenizer = load_tokenizer(directory, vocab_size)
        assert tokenizer("aź").input_ids == [97, 197, 186]
        assert tokenizer.eos_token_id == 260


def test_a_document_ends_with_the_end_of_text(directory: Path):
    assert encode(load_tokenizer(directory, 263), "aź") == [97, 197, 186, 260]


def test_batches_give_what_one_at_a_time_gives(directory: Path, monkeypatch):
    """Over the edges of batches, in order, with special tokens spelled out in the text; and though the directory's own
    file asks for at most two ids, padded to nine."""
    backend = byte_tokenizer().backend_tokenizer
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.save(str(directory / "tokenizer.json"))
    tokenizer = load_tokenizer(directory, 263)
    monkeypatch.setattr(tokenizers, "BATCH_CHARACTERS", 7)
    texts = ["ab", "cdefg", "żółw <|im_end|> 1", "x" * 30, "y", "</s>", "z\r\n"]
    documents = [Document(text, "", index) for index, text in enumerate(texts)]
    found = list(encode_all(tokenizer, iter(documents)))
    assert [document for document, _ in found] == documents
    assert [ids for _, ids in found] == [encode(tokenizer, text) for text in texts]
    assert max(len(ids) for _, ids in found) == 31


def test_a_tokenizer_that_is_not_fast(directory: Path):
    class Slow:
        is_fast, eos_token_id = False, 9

        def __call__(self, text, add_special_tokens):
            return {"input_ids": [len(text)]}

    assert [ids for _, ids in encode_all(Slow(), [Document("ab", "", 0)])] == [[2, 9]]


@pytest.mark.skipif(not POLISH, reason="BIELIK_NEMO_POLISH_TEXTS names no directory of Polish books")
def test_batches_on_real_text():
    """A byte-pair encoding with merges learned from the text itself."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    documents = list(read_documents(POLISH))[:4] + list(read_documents("builtin:package-docs"))
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    made.train_from_iterator((d.text for d in documents), trainers.BpeTrainer(vocab_size=2000, special_tokens=["</s>"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
    assert [ids for _, ids in encode_all(tokenizer, documents)] == [encode(tokenizer, d.text) for d in documents]


def test_ids_that_the_model_does_not_have(directory: Path):
    message = error_of(directory, 262)
    assert "token ids up to 262" in message
    assert "vocabulary has 262" in message


def test_added_tokens_count_as_ids(directory: Path):
    """`len(base vocabulary)` stays 263 when a token is added: it is the largest id, 263, that must be checked."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens("<extra>")
    tokenizer.save_pretrained(directory)
    assert "token ids up to 263" in error_of(directory, 263)
    assert len(load_tokenizer(directory, 264)) == 264


def test_no_end_of_text(directory: Path):
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(directory)
    assert "names no eos_token" in error_of(directory)


@pytest.mark.parametrize("name", ["gpt2", "organisation/model"])
def test_missing_directory_is_never_looked_up_on_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """A relative path that does not exist looks like a hub's model name; any connection would fail this test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the tokenizer was looked up on a network"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("a host name was looked up"))
    assert "no such directory" in error_of(Path(name))


@pytest.mark.parametrize("model_type", [None, "llama", "mistral", "qwen2"])
def test_directory_without_tokenizer_files(tmp_path: Path, model_type: str | None):
    """Neither an empty directory nor a model's bare config.json may give an empty or a default tokenizer."""
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert "no tokenizer that transformers can load" in error_of(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("damage", ["truncated", "not UTF-8"])
def test_damaged_file(directory: Path, name: str, damage: str):
    content = (directory / name).read_bytes()
    (directory / name).write_bytes(content[: len(content) // 2] if damage == "truncated" else b"\xff\xfe" + content)
    assert "no tokenizer that transformers can load" in error_of(directory)


@pytest.mark.parametrize("tokenizer_class", ["Remote", "PreTrainedTokenizerFast", None])
def test_code_in_the_directory_is_not_run(directory: Path, tmp_path: Path, tokenizer_class: str | None):
    """`auto_map` asks for a class in a file beside the tokenizer, whose import leaves a trace.

    Where a class of transformers is named too, that one is taken; otherwise loading is refused. `config.json` and the
    tokenizer's own configuration may both carry the request.
    """
    trace = tmp_path / "was-run"
    (directory / "remote.py").write_text(
        f"from transformers import PreTrainedTokenizerFast\nopen({str(trace)!r}, 'w').close()\n"
        "class Remote(PreTrainedTokenizerFast):\n    pass\n"
    )
    config = json.loads((directory / "tokenizer_config.json").read_text())
    request = {"AutoTokenizer": ["remote.Remote", "remote.Remote"], "AutoConfig": "remote.Remote"}
    config |= {"auto_map": request, "tokenizer_class": tokenizer_class}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text(json.dumps({"model_type": "remote", "auto_map": request}))
    if tokenizer_class == "PreTrainedTokenizerFast":
        assert load_tokenizer(directory, 263).eos_token_id == 260
    else:
        error_of(directory)
    assert not trace.exists()


def test_words_of_a_student_and_its_teacher(directory: Path, tmp_path: Path):
    """Two words that have changed places, and one that only the student has: 263."""
    check_same_words(directory, directory, 263)
    added = byte_tokenizer()
    added.add_tokens("<extra>")
    added.save_pretrained(tmp_path / "added")
    with pytest.raises(DataError, match=r"added: another tokenizer .* 1 words differ \('<extra>': 263, .* None\)"):
        check_same_words(tmp_path / "added", directory, 300)
    swapped = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = swapped["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    byte_tokenizer().save_pretrained(tmp_path / "swapped")
    (tmp_path / "swapped" / "tokenizer.json").write_text(json.dumps(swapped))
    with pytest.raises(DataError, match=r"2 words differ \('a': 98, the teacher's 97; 'b': 97, the teacher's 98\)"):
        check_same_words(tmp_path / "swapped", directory, 300)


def test_bytes_of_byte_level_tokens(directory: Path):
    """Every byte is one; the seven special tokens, and rows that are no token, are none."""
    assert byte_lengths(load_tokenizer(directory, 263), 264) == [1] * 256 + [0] * 8


def test_bytes_of_sentencepiece_tokens():
    """A space is written with three bytes that stand for one; an added word has its own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "</s>": 1, "<0xC5>": 2, "<0xBC>": 3, "\u2581": 4, "\u2581kot": 5, "ó": 6, "a": 7}
    made = Tokenizer(models.BPE(words, [], unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken("<unk>", special=True), AddedToken("</s>", special=True)])
    made.add_tokens(["żółw"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")
    lengths = byte_lengths(tokenizer, 10)
    assert lengths == [0, 0, 1, 1, 1, 4, 2, 1, len("żółw".encode()), 0]
    text = "aż ó"
    assert sum(lengths[token] for token in tokenizer(text)["input_ids"]) == len(text.encode()) == 6
