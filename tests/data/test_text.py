import json
from importlib import metadata
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from bielik_nemo.data import text
from bielik_nemo.data.text import Document, is_held_out, normalised, read_documents
from bielik_nemo.errors import DataError

POLISH = "Zażółć\r\ngęślą jaźń\u00a0e\u0301\n"  # CRLF, no-break space and a combining accent must survive


def read(path: Path, **keys: str) -> list[Document]:
    return list(read_documents(path, **keys))


def refuse(path: Path | str, **keys: str) -> str:
    with pytest.raises(DataError) as caught:
        list(read_documents(path, **keys))
    return str(caught.value)


def test_txt_is_one_document_kept_as_it_is(tmp_path: Path):
    file = tmp_path / "a.txt"
    file.write_bytes(POLISH.encode())
    assert read(file) == [Document(POLISH, str(file), 0)]


def test_jsonl_keeps_row_numbers_and_skips_blank_texts(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n\n{"text": " "}\n' + json.dumps({"text": POLISH}) + "\n")
    assert read(file) == [Document("a", str(file), 0), Document(POLISH, str(file), 3)]


def test_parquet_is_read_over_row_groups(tmp_path: Path):
    file = tmp_path / "a.parquet"
    table = pyarrow.table({"body": ["a", POLISH, "c", "", "e"], "n": range(5)})
    parquet.write_table(table, file, row_group_size=2)
    found = [(document.text, document.index) for document in read(file, text_key="body")]
    assert found == [("a", 0), (POLISH, 1), ("c", 2), ("e", 4)]


def test_directory_is_read_recursively_in_sorted_order(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.txt").write_text("two")
    (tmp_path / "c.txt").write_text("three")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}')
    (tmp_path / "README.md").write_text("not text data")
    assert [document.text for document in read(tmp_path)] == ["one", "two", "three"]


def test_bytes_that_are_not_utf8_are_named_by_line_and_offset(tmp_path: Path):
    """'ab\\n' is 3 bytes and 'c' the fourth, so the Latin-2 'ó' (0xf3) stands in line 2 at offset 4.

    In the JSONL file the first line has 14 bytes with its end, and 10 stand before the bad one: offset 24.
    """
    (tmp_path / "a.txt").write_bytes(b"ab\nc\xf3 d")
    assert f"{tmp_path / 'a.txt'}:2: not UTF-8: byte 0xf3 at offset 4" in refuse(tmp_path / "a.txt")
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xf3"}\n')
    assert f"{tmp_path / 'a.jsonl'}:2: not UTF-8: byte 0xf3 at offset 24" in refuse(tmp_path / "a.jsonl")
    column = pyarrow.array([b"ok", b"\xf3 "]).cast(pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert "row 1: 'text' is not UTF-8 at byte 0" in refuse(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "b"', "not JSON"),
        ("[1]", "expected a JSON object, found list"),
        ('{"txt": "b", "id": 1}', "no key 'text'; found ['id', 'txt']"),
        ('{"text": 3}', "'text' must be a string, found int"),
        ('{"text": null}', "'text' must be a string, found NoneType"),
        ('{"text": "\\ud800"}', "lone surrogate at character 0"),
    ],
)
def test_a_bad_jsonl_line_is_named(tmp_path: Path, line: str, expected: str):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n' + line + "\n")
    message = refuse(file)
    assert message.startswith(f"{file}:2: ")
    assert expected in message


def test_bad_parquet(tmp_path: Path):
    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": ["a", None], "n": [1, 2]}), file)
    assert refuse(file) == f"{file}: no column 'text'; found ['body', 'n']"
    assert "row 1: 'body' must be a string, found NoneType" in refuse(file, text_key="body")
    assert "row 0: 'n' must be a string, found int" in refuse(file, text_key="n")
    file.write_bytes(file.read_bytes()[:-20])
    assert f"{file}: not a readable Parquet file" in refuse(file)


@pytest.mark.parametrize(("name", "content"), [("a.txt", ""), ("a.txt", " \n"), ("a.jsonl", ""), ("a.jsonl", "\n")])
def test_a_file_without_text_is_refused(tmp_path: Path, name: str, content: str):
    (tmp_path / name).write_text(content)
    assert refuse(tmp_path / name) == f"{tmp_path / name}: holds no text"
    (tmp_path / "full.txt").write_text("x")
    assert refuse(tmp_path) == f"{tmp_path / name}: holds no text"


def test_nothing_to_read_is_refused(tmp_path: Path):
    assert refuse(tmp_path / "none.txt").startswith(f"{tmp_path / 'none.txt'}: no such file or directory; allowed: ")
    assert refuse(tmp_path).startswith(f"{tmp_path}: no text files in this directory")
    (tmp_path / "a.csv").write_text("x")
    assert refuse(tmp_path / "a.csv").startswith(f"{tmp_path / 'a.csv'}: unknown kind of text file '.csv'; allowed: ")


def _package(folder: Path, name: str, body: str) -> None:
    info = folder / f"{name}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n\n{body}", encoding="utf-8")


def test_package_docs_are_sorted_by_normalised_name_without_our_own(tmp_path: Path, monkeypatch):
    for name, body in [("Zeta", "z"), ("B_b", "# Żółw\n"), ("a.a", "a"), ("empty", ""), ("old", "UNKNOWN\n")]:
        _package(tmp_path, name, body)
    for name in ["bielik_nemo", "pip"]:
        _package(tmp_path, name, "not this")
    distributions = metadata.distributions
    monkeypatch.setattr(text.metadata, "distributions", lambda path: distributions(path=[str(tmp_path)]))
    assert list(read_documents(text.PACKAGE_DOCS)) == [
        Document("a", "builtin:package-docs/a-a", 0),
        Document("# Żółw\n", "builtin:package-docs/b-b", 0),
        Document("z", "builtin:package-docs/zeta", 0),
    ]
    monkeypatch.setattr(text.metadata, "distributions", lambda path: [])
    assert refuse(text.PACKAGE_DOCS) == "builtin:package-docs: no installed package has a description"


def test_package_docs_of_this_environment():
    documents = list(read_documents(text.PACKAGE_DOCS))
    assert sum(len(document.text) for document in documents) > 500_000
    assert [document.source for document in documents] == sorted(document.source for document in documents)


def test_held_out_depends_on_text_and_seed_alone():
    """`printf '7\\na' | sha256sum` begins with the 16 hex digits below, 0.598 of 2**64: held out above that."""
    document = Document("a", "one", 0)
    share = 0x9929BDEC48A6223B / 2**64
    assert is_held_out(document, 1.0, 7) and not is_held_out(document, 0.0, 7)
    assert is_held_out(document, share + 1e-9, 7) and not is_held_out(document, share - 1e-9, 7)
    assert is_held_out(Document("a", "another", 5), share + 1e-9, 7)
    with pytest.raises(ValueError, match=r"expected 0\.\.1, got 5"):
        is_held_out(document, 5, 7)


def test_a_copy_in_another_form_is_on_the_same_side():
    """NFKC joins e + accent and splits the ligature; casefold makes ß ss; white space of any kind is one space."""
    text = "Straße  ﬁn\tżółw\u00a0e\u0301\n"
    assert normalised(text) == "strasse fin żółw é"
    for copy in ("STRASSE fin ŻÓŁW É", "  Straße\r\nﬁn żo\u0301łw é"):
        assert normalised(copy) == normalised(text)
    # Folded, U+1FB7 (alpha with circumflex and iota below) is two letters in a form that NFKC writes in another way.
    assert normalised("\u1fb7") == normalised(normalised("\u1fb7"))
    for other in ("strasse fin żółw e", "strassefin żółw é"):
        assert normalised(other) != normalised(text)


def test_held_out_share_is_the_fraction():
    """Of 10,000 documents 5 % is 500, with a standard deviation of sqrt(10000 * 0.05 * 0.95) = 22: within 4 of them."""
    documents = [Document(str(number), "", number) for number in range(10_000)]
    first = [is_held_out(document, 0.05, 0) for document in documents]
    assert abs(sum(first) - 500) < 88
    assert first != [is_held_out(document, 0.05, 1) for document in documents]
